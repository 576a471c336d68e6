"""The commands of `sscxr`: thin, so that `--help` and a mistyped option are answered immediately."""
