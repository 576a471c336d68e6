"""`sscxr doctor`: what would keep this machine from taking part in a federation, found before a run finds it.

One module a topic: `machine` (versions, device, memory, disk), `network` (name, port, certificate), `fleet` (clock
and node key), `bandwidth`, `data` (the site's files and cache). `examination` puts them in order. No line names a
file, a patient or an image; `docs/doctor.md` lists every check with its bounds.
"""
