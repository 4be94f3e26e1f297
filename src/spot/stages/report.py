"""The stage `report`: what a run did, in `summary.json` and `report.html`."""

from rich.console import Console

from spot.config import RunConfig
from spot.files.disk import write_atomic
from spot.report.build import build_report
from spot.report.collect import collect
from spot.stages.place import Place


def report(config: RunConfig, place: Place, console: Console) -> str:
    """Sum up a run in `summary.json` and `report.html`."""
    del console
    run = place.run
    assert run is not None
    write_atomic(run / "summary.json", collect(run, config).model_dump_json(indent=2) + "\n")
    return build_report(run.path, run.manifest.get("command", "spot run")).name
