"""Benchmarks' figures beside their aims, as a table and a plot: python benchmarks/table.py UP.json SCALE.json
[PLOT.svg]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot


class Row(NamedTuple):
    """One figure and the most that it should be."""

    what: str
    figure: float
    aim: float
    unit: str

    @property
    def share(self) -> float:
        """The figure as a share of its aim."""
        return self.figure / self.aim


def rows(up: dict[str, Any], scale: dict[str, Any]) -> list[Row]:
    """Return the figures of both benchmarks."""
    first = scale["sizes"][0]
    size = f"{first['nodes']} nodes, {first['guests']} guests"
    return [
        Row("up from images, no checkpoint, to the floor", up["up_to_floor"], 0.5, ""),
        Row("up from a checkpoint, to the floor", up["checkpoint_to_floor"], 0.1, ""),
        Row("up from a checkpoint", up["from_checkpoint_s"], 15, "s"),
        Row("up with nothing to do", up["nothing_to_do_s"], 3, "s"),
        Row("memory of the lab", up["lab_mib"] / 1024, 6, "GiB"),
        Row("peak memory of testbed up", up["peak_mib"], 200, "MiB"),
        Row(f"validate and plan {size}", first["total_s"], 5, "s"),
        Row("its memory", first["peak_mib"], 500, "MiB"),
        Row("twice the size", scale["twice_the_size_costs"], 2.2, ""),
    ]


def markdown(found: list[Row]) -> str:
    """Return the table."""
    lines = ["| | figure | aim | reached |", "|---|---|---|---|"]
    lines += [
        (
            f"| {r.what} | {r.figure:.3g} {r.unit} | at most {r.aim:g} {r.unit} | "
            f"{'yes' if r.share <= 1 else 'no'} |"
        )
        for r in found
    ]
    return "\n".join(line.replace("  |", " |") for line in lines)


def plot(found: list[Row], file: Path) -> None:
    """Draw every figure as a share of its aim."""
    figure, axes = pyplot.subplots(figsize=(9, 4))
    axes.barh(
        [row.what for row in found],
        [row.share for row in found],
        color=["tab:green" if r.share <= 1 else "tab:red" for r in found],
    )
    axes.axvline(1, color="black")
    axes.set_xlabel("share of the aim; left of the line is reached")
    axes.invert_yaxis()
    figure.tight_layout()
    figure.savefig(file)


def main() -> int:
    """Print the table, and draw the plot if it is asked for."""
    up, scale = (json.loads(Path(name).read_text()) for name in sys.argv[1:3])
    found = rows(up, scale)
    print(markdown(found))
    if len(sys.argv) > 3:
        plot(found, Path(sys.argv[3]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
