"""Fuzz the decoders by coverage: `ci/fuzz [--seconds 600] [target …]`.

Needs `pip install atheris`. Each target of `tests/fuzz/targets.py` runs in a process of its
own, beginning with the corpus in the repository.  What it finds lies in `build/fuzz/TARGET/`;
a finding that was mended goes to `tests/fuzz/corpus/TARGET/`, where the tests run it from
then on.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
CORPUS = ROOT / "tests" / "fuzz" / "corpus"
MEMORY_MEBI = 1024
LONGEST_INPUT = 4096
SLOWEST_SECONDS = 10


def fuzz(name: str, arguments: list[str]) -> None:
    """Run one target until it fails or its time is over; never returns."""
    import atheris

    with atheris.instrument_imports(include=["federated_dask", "site_plugins"]):
        from tests.fuzz.targets import run, seeds, warm_up
    from tests.protocol.watching import watched

    warm_up()
    folder = Path(arguments[0])
    for number, seed in enumerate(seeds(name)):
        (folder / f"seed-{number}").write_bytes(seed)

    def one(data: bytes) -> None:
        with watched():
            run(name, data)

    atheris.Setup([sys.argv[0], *arguments], one)
    atheris.Fuzz()


def main() -> int:
    """Run the targets one after the other; 1 if any of them found something."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*")
    parser.add_argument("--seconds", type=int, default=600, help="for each target")
    given = parser.parse_args()
    from tests.fuzz.targets import TARGETS

    failed = []
    for name in given.targets or TARGETS:
        folder = ROOT / "build" / "fuzz" / name
        folder.mkdir(parents=True, exist_ok=True)
        options = [f"-max_total_time={given.seconds}", f"-max_len={LONGEST_INPUT}"]
        options += [f"-rss_limit_mb={MEMORY_MEBI}", f"-timeout={SLOWEST_SECONDS}"]
        options += [f"-artifact_prefix={folder}/finding-", "-print_final_stats=1", "-verbosity=0"]
        command = [sys.executable, __file__, "--one", name, str(folder)]
        if (CORPUS / name).is_dir():
            command.append(str(CORPUS / name))
        print(f"── {name}: {given.seconds} s", flush=True)
        if subprocess.run([*command, *options], cwd=ROOT, check=False).returncode:
            failed.append(name)
    print("Findings in: " + ", ".join(failed) if failed else "No findings.")
    return bool(failed)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    if sys.argv[1:2] == ["--one"]:
        fuzz(sys.argv[2], sys.argv[3:])
    sys.exit(main())
