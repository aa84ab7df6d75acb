"""The list of the papers' accuracy tables, by the names that `crowdrt table` takes."""

from collections.abc import Mapping

from crowdrt.benchmarks.tables.trained.deepcount import (
    DEEPCOUNT_TABLE_2,
    DEEPCOUNT_TABLE_4,
    DEEPCOUNT_TABLE_5,
    DEEPCOUNT_TABLE_7,
    DEEPCOUNT_TABLE_8,
    DEEPCOUNT_TABLE_9,
)
from crowdrt.benchmarks.tables.trained.definition import PrintedTable
from crowdrt.benchmarks.tables.trained.dsla import (
    DSLA_TABLE_2,
    DSLA_TABLE_3,
    DSLA_TABLE_4,
    DSLA_TABLE_6,
    DSLA_TABLE_7,
    DSLA_TABLE_8,
)
from crowdrt.benchmarks.tables.trained.skt import (
    SKT_TABLE_2,
    SKT_TABLE_3,
    SKT_TABLE_4,
    SKT_TABLE_6,
    SKT_TABLE_7,
    SKT_TABLE_9,
)

ACCURACY_TABLES: Mapping[str, PrintedTable] = {
    "skt-2": SKT_TABLE_2,
    "skt-3": SKT_TABLE_3,
    "skt-4": SKT_TABLE_4,
    "skt-6": SKT_TABLE_6,
    "skt-7": SKT_TABLE_7,
    "skt-9": SKT_TABLE_9,
    "deepcount-2": DEEPCOUNT_TABLE_2,
    "deepcount-4": DEEPCOUNT_TABLE_4,
    "deepcount-5": DEEPCOUNT_TABLE_5,
    "deepcount-7": DEEPCOUNT_TABLE_7,
    "deepcount-8": DEEPCOUNT_TABLE_8,
    "deepcount-9": DEEPCOUNT_TABLE_9,
    "dsla-2": DSLA_TABLE_2,
    "dsla-3": DSLA_TABLE_3,
    "dsla-4": DSLA_TABLE_4,
    "dsla-6": DSLA_TABLE_6,
    "dsla-7": DSLA_TABLE_7,
    "dsla-8": DSLA_TABLE_8,
}
