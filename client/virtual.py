"""The site of a node: its `site.yaml`, or, in a simulation, a virtual hospital."""

import os
from pathlib import Path

from flwr.app import Context

from client.settings import SiteError, SiteSettings, read_settings
from sscxr.files import expanded, locked

_PHANTOMS, _PHANTOM_SIZE = 100, 128  # images, px: for a virtual node without a site


def settings_of(context: Context) -> SiteSettings:
    """Return the settings of this node's site: its `site.yaml`, or one of the simulation's virtual sites."""
    file = context.node_config.get("site")
    if file:
        return read_settings(expanded(str(file)))
    number = context.node_config.get("partition-id")
    if number is None:
        raise SiteError(
            "settings", "this node has no site: start it with --node-config 'site=\"/path/site.yaml\"'"
        )
    _check_own_code()
    folder = context.run_config.get("sites")
    if folder:
        files = sorted(expanded(str(folder)).glob("*/site.yaml"))
        if int(number) >= len(files):
            raise SiteError("settings", f"{folder} has {len(files)} virtual sites, this is number {number}")
        return read_settings(files[int(number)])
    return _phantom_hospital(int(number))


def is_of_phantoms(context: Context) -> bool:
    """Return whether this is a virtual node without a site, whose images are phantoms."""
    return not context.node_config.get("site") and not context.run_config.get("sites")


def _check_own_code() -> None:
    """Check that this is the bundle's code.

    Actors of Flower's simulation prefer a `client` package in the directory that the SuperLink was started in,
    and would run it silently; PYTHONPATH has the path of the process that started them.

    Raises:
        SiteError: the code is not the bundle's.
    """
    here = Path(__file__).parent
    for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep):
        bundled = Path(folder) / here.name
        if folder and (bundled / "app.py").is_file():
            if _code(here) != _code(bundled):
                raise SiteError(
                    "settings",
                    f"this actor runs {here} in place of {bundled}: end the local SuperLink, and start the run "
                    "from another directory",
                )
            return


def _code(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("*.py")}


def _phantom_hospital(number: int) -> SiteSettings:
    """Return a hospital of phantoms for a virtual node without a site, made once and kept."""
    # Imported here: a real site should not import them at every message.
    from sscxr.data.phantoms import phantom
    from sscxr.data.prepare.prepare import PUBLIC_SALT, prepare

    folder = expanded("~/.sscxr/phantoms") / f"hospital-{number}"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "lock"):  # another run's node may be making the same one
        manifests = phantom.write(folder / "files", images=_PHANTOMS, sites=1, seed=number)
        prepare(manifests, folder / "cache", size=_PHANTOM_SIZE, workers=0, salt=PUBLIC_SALT, progress=False)
    return SiteSettings(f"phantom-{number}", str(folder / "cache"), str(folder / "state"), min_cell=1)
