"""Write the tables of docs/choosing.md from what benchmarks have measured.

python docs/tables.py          writes them
python docs/tables.py --check  fails when one is not what would be written
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent / "choosing.md"
RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
_TABLE = re.compile(r"(<!-- table: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)
Row = dict[str, Any]


def main() -> int:
    """Write or check the page; the exit code."""
    page = PAGE.read_text("utf-8")
    found = written(page)
    if "--check" in sys.argv:
        if found != page:
            print("docs/choosing.md is not what was measured; run `make docs`")
        return int(found != page)
    PAGE.write_text(found, "utf-8")
    return 0


def written(page: str) -> str:
    """The page with its tables as they should be."""
    return _TABLE.sub(lambda match: match[1] + table(match[2]) + match[3], page)


def table(name: str) -> str:
    """One of them: `decoder`, `encoder`, `signals decoder` or `signals encoder`."""
    kind, _, subject = name.rpartition(" ")
    made, file = (ordered, "signals") if kind else (sized, "compress")
    path = RESULTS / f"{file}.json"
    rows = json.loads(path.read_text("utf-8"))["rows"] if path.exists() else []
    return made(rows, subject)


def ordered(rows: list[Row], subject: str) -> str:
    """What a student became by each signal, the best first; what it was before comes last."""
    rows = [row for row in rows if row["subject"] == subject]
    judge, most = ("cosine", True) if subject == "encoder" else ("kl", False)
    lines = ["| signal | step | " + ("cosine" if most else "divergence") + " |", "|---|---|---|"]
    for row in sorted(rows, key=lambda row: row[judge], reverse=most):
        lines.append(f"| {row['signal']} | `{row['kind']}` | {_value(row, judge)} |")
    lines += [f"| none | | {_value(row, f'student_{judge}')} |" for row in rows[:1]]
    return "\n".join(lines) + "\n"


def _value(row: Row, figure: str) -> str:
    return f"{row[figure]:.3f} [{row[f'{figure}_low']:.3f}, {row[f'{figure}_high']:.3f}]"


def sized(rows: list[Row], subject: str) -> str:
    """What our methods did to a subject, `decoder` or `encoder`, the smallest first.

    In bold is what nothing as small or smaller is better than.
    """
    judge, digits = ("distance", 4) if subject == "encoder" else ("kl", 3)
    mine = [row for row in rows if _is(row, subject)]
    sizes = {row["case"]: row["bytes"] for row in mine if "bytes" in row}
    told = [row | {"bytes": row.get("bytes", sizes.get(row["case"]))} for row in mine]
    told = sorted((row for row in told if row["bytes"]), key=lambda row: (row["bytes"], row[judge]))
    best = float("inf")
    lines = ["| MB | what | how | divergence | healed away |", "|---|---|---|---|---|"]
    for row in told:
        low, high = (f"{row[f'{judge}_{end}']:.{digits}f}" for end in ("low", "high"))
        value, mark = f"{row[judge]:.{digits}f}", "**" if row[judge] < best else ""
        best = min(best, row[judge])
        case, size = row["case"].removeprefix("encoder "), f"{row['bytes'] / 1e6:.0f}"
        how = f"{mark}{row['method']}{mark}"
        gone = f"{row['healed_share']:.0%}".replace("%", " %") if "healed_share" in row else ""
        cells = [size, case, how, f"{mark}{value}{mark} [{low}, {high}]", gone]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _is(row: Row, subject: str) -> bool:
    """Whether a row is of this subject's weights, of our own methods and the usual calibration."""
    case, method = row["case"], row["method"]
    peer = " of " in method or method.startswith("auto-round")
    other = peer or ", part" in case or case == "kv"
    return not other and case.startswith("encoder ") == (subject == "encoder")


if __name__ == "__main__":
    sys.exit(main())
