"""`sscxr doctor`: finds what would keep this machine from taking part in a federation, before a run does.

Each topic has a module: `machine` (versions, device, memory, disk), `network` (name, port, certificate), `fleet`
(clock and node key), `bandwidth`, `data` (the site's files and cache). `examination` runs them in order. No line
names a file, a patient or an image; `docs/doctor.md` lists every check with its bounds.
"""
