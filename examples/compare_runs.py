"""Compare two runs by their tables: settings that differ, loss by round, missing sites, probes.

    python examples/compare_runs.py runs/one runs/other

Without runs it makes two small ones of phantoms, with plain averaging and with momentum at the server. The runs
may still be going.
"""

import argparse
import sys
from pathlib import Path
from subprocess import run
from tempfile import mkdtemp

import pandas as pd

import sscxr
from sscxr import config as configs


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", type=Path, help="two folders of runs")
    folders = parser.parse_args(argv).runs or two_small_runs(Path(mkdtemp(prefix="runs-")))
    runs = {str(folder): sscxr.Run(folder) for folder in folders}
    for one in runs.values():
        print(one)

    print("\nsettings that differ")
    flat = {
        name: pd.json_normalize(configs.as_dict(one.config)).iloc[0].map(str) for name, one in runs.items()
    }
    settings = pd.DataFrame(flat)
    print(settings[settings.nunique(axis=1) > 1].to_string())

    print("\nloss by round, weighted by images")
    print(pd.DataFrame({name: one.rounds["loss"] for name, one in runs.items()}).round(4).to_string())

    print("\nattempts by outcome, all sites and rounds")
    outcomes = {name: one.sites["outcome"].value_counts() for name, one in runs.items()}
    print(pd.DataFrame(outcomes).fillna(0).astype(int).to_string())

    print("\nAUROC of the probes, and gain over the untrained encoder with its 95 % interval")
    for name, one in runs.items():
        keys = ["cohort", "label", "kind", "auroc", "gain", "gain_low", "gain_high"]
        print(f"{name}\n{one.probes[keys].round(3).to_string(index=False)}")


def two_small_runs(folder: Path) -> list[Path]:
    """Run two federations of two phantom hospitals that differ in the server's optimiser."""
    rules = {"fedavg": [], "nesterov": ["federation.server.name=nesterov", "federation.server.momentum=0.5"]}
    for name, settings in rules.items():
        command = [sys.executable, "-m", "sim.run", "--clients", "2", "--config", "smoke", "sim.phantoms=48"]
        run([*command, "--out", str(folder / name), f"run.name={name}", *settings], check=True)
    return [folder / name for name in rules]


if __name__ == "__main__":
    main()
