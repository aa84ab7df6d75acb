"""SKT's Table 8 from a race, in every format."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from crowdrt.benchmarks.tables import formats
from crowdrt.benchmarks.tables.render import markdown_table, print_table, race_sheets
from crowdrt.benchmarks.tables.table import TableRow, race_csv
from crowdrt.console import out


@dataclass(frozen=True)
class RaceTable:
    """What `crowdrt table skt-8` shows."""

    rows: Sequence[TableRow]

    def show(self) -> None:
        """Print one table per size for a terminal."""
        print_table(self.rows, out)

    def markdown(self) -> str:
        """Return one table per size."""
        return markdown_table(self.rows)

    def csv(self) -> str:
        """Return the rows of all sizes."""
        return race_csv(self.rows)

    def latex(self) -> str:
        """Return one tabular per size."""
        return formats.latex(race_sheets(self.rows))

    def document(self) -> list[dict[str, Any]]:
        """Return the rows as `--json` prints them."""
        return [row.as_dict() for row in self.rows]
