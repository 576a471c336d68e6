#!/bin/sh
# Make the federation's own CA, and the certificate of its server.
#
#   make-ca.sh DIR HOST...     make DIR/ca.key, ca.crt, server.key, server.crt; the certificate is valid for each HOST
#                              (a name or an IP address), and for localhost
#   make-ca.sh --renew DIR     sign the server's key again, for the same hosts; ca.crt stays, so no site notices
#   make-ca.sh --renew DIR HOST...   the same, for these hosts
#
# Keys are never overwritten. ca.key signs certificates that every site trusts: keep it off the server between
# renewals. CA_DAYS and DAYS set how long the two certificates are valid.
set -eu

CA_DAYS=${CA_DAYS:-3650}
DAYS=${DAYS:-397}

fail() { echo "make-ca.sh: $*" >&2; exit 1; }

# HOST... as a subjectAltName; localhost is in it for programs on the server itself.
names() {
    list="DNS:localhost,IP:127.0.0.1"
    for host in "$@"; do
        case $host in
            localhost | 127.0.0.1) continue ;;
            *[!A-Za-z0-9.:_-]* | '' | -*) fail "$host is neither a host name nor an address" ;;
            *:*) list="$list,IP:$host" ;;
            *[!0-9.]*) list="$list,DNS:$host" ;;
            *) list="$list,IP:$host" ;;
        esac
    done
    echo "$list"
}

key() { openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1"; }

# Sign server.key for the names in $1.
sign() {
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    openssl req -new -key "$dir/server.key" -subj "/CN=sscxr SuperLink" -out "$work/request"
    cat > "$work/extensions" <<END
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = $1
END
    openssl x509 -req -in "$work/request" -CA "$dir/ca.crt" -CAkey "$dir/ca.key" -days "$DAYS" -sha256 \
        -set_serial "0x$(openssl rand -hex 16)" -extfile "$work/extensions" -out "$work/server.crt" 2> "$work/log" ||
        fail "$(cat "$work/log")"
    openssl verify -CAfile "$dir/ca.crt" "$work/server.crt" > "$work/log" 2>&1 || fail "$(cat "$work/log")"
    chmod 644 "$work/server.crt"
    mv "$work/server.crt" "$dir/server.crt"
    echo "$dir/server.crt: $1, until $(openssl x509 -in "$dir/server.crt" -noout -enddate | cut -d= -f2)"
}

renew=
if [ "${1:-}" = --renew ]; then renew=yes; shift; fi
[ $# -ge 1 ] || fail "usage: make-ca.sh [--renew] DIR HOST..."
dir=$1; shift
umask 077

if [ -n "$renew" ]; then
    for file in ca.key ca.crt server.key; do
        [ -f "$dir/$file" ] || fail "no $dir/$file; put it there for the renewal"
    done
    if [ $# -eq 0 ]; then
        [ -f "$dir/server.crt" ] || fail "no $dir/server.crt to take the hosts from; name them"
        # shellcheck disable=SC2046  # one word a host
        set -- $(openssl x509 -in "$dir/server.crt" -noout -ext subjectAltName |
            sed -n '2,$p' | tr ',' '\n' | sed 's/^ *\(DNS\|IP Address\)://')
    fi
    hosts=$(names "$@")
    sign "$hosts"
    exit
fi

[ $# -ge 1 ] || fail "name the host, or hosts, that sites connect to"
hosts=$(names "$@")
for file in ca.key server.key; do
    [ ! -e "$dir/$file" ] || fail "$dir/$file exists, and keys are never overwritten; --renew signs it again"
done
(umask 022 && mkdir -p "$dir")  # the certificates are for everybody, the keys are not
key "$dir/ca.key"
openssl req -x509 -new -key "$dir/ca.key" -days "$CA_DAYS" -sha256 -subj "/CN=sscxr federation CA" \
    -addext "basicConstraints = critical,CA:TRUE,pathlen:0" -addext "keyUsage = critical,keyCertSign,cRLSign" \
    -addext "subjectKeyIdentifier = hash" -out "$dir/ca.crt"
chmod 644 "$dir/ca.crt"
key "$dir/server.key"
sign "$hosts"
