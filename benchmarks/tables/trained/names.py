"""The recipes whose training records stand in the papers' rows, by name.

A name says what is trained, not how wide and not on what: those are in the record. A recipe of
other settings has the declared name and a suffix of its own (`skt-3-none-cpu`); it is never taken
for the printed row's.
"""

SKT_NETWORKS = ("sanet", "csrnet", "bl")

# SKT, Table 3: what is transferred; the density map's loss is the same in all.
SKT_3 = (
    "skt-3-none",
    "skt-3-l2",
    "skt-3-cosine",
    "skt-3-sparse-fsp",
    "skt-3-dense-fsp",
    "skt-3-l2-dense-fsp",
    "skt-3-cosine-dense-fsp",
)

# One recipe that several tables print: trained once, under any of these names.
CSRNET_NONE = ("skt-3-none", "skt-2-none", "skt-6-csrnet-none")
CSRNET_SKT = (
    "skt-3-cosine-dense-fsp",
    "skt-2-transfer",
    "skt-4-hard-soft",
    "skt-6-csrnet-transfer",
)
CSRNET = ("skt-6-csrnet",)
DEEPCOUNT = ("deepcount-2", "deepcount-8-leaky-relu", "deepcount-9-all")
ONENET = ("dsla-4-onenet",)
DSLA = ("dsla-4-sla-fs", "dsla-6-k6", "dsla-7-max-0.6-min-0.4")


def skt_row(table: int, network: str, kind: str) -> tuple[str, ...]:
    """Return the names for a row of Table 6, 7 or 9; `kind` is "", "none" or "transfer"."""
    own = f"skt-{table}-{network}{kind and '-'}{kind}"
    if (table, network) != (6, "csrnet"):
        return (own,)
    same = {"": CSRNET, "none": CSRNET_NONE, "transfer": CSRNET_SKT}[kind]
    return (own, *(name for name in same if name != own))


def without_branches(num_ablated: int) -> str:
    """Return the name for a row of DeepCount's Table 9: branches 1 to `num_ablated` left out."""
    if not num_ablated:
        return "deepcount-9-all"
    return "deepcount-9-without-1" + (f"-{num_ablated}" if num_ablated > 1 else "")


DECLARED = (
    *dict.fromkeys(
        (
            *SKT_3,
            *CSRNET_NONE,
            *CSRNET_SKT,
            *("skt-4-hard", "skt-4-soft", "skt-6-mcnn", "skt-7-mcnn", "skt-9-mcnn"),
            *(
                name
                for table in (6, 7, 9)
                for network in SKT_NETWORKS
                for kind in ("", "none", "transfer")
                for name in skt_row(table, network, kind)
            ),
            *DEEPCOUNT,
            *("deepcount-4", "deepcount-5", "deepcount-8-relu"),
            *(f"deepcount-7-branch-{number}" for number in range(1, 6)),
            *(without_branches(number) for number in range(6)),
            *ONENET,
            *DSLA,
            *("dsla-4-fs", "dsla-4-sla"),
            *(f"dsla-6-k{number}" for number in range(10, 3, -1)),
            *(f"dsla-7-max-0.6-min-0.{number}" for number in (4, 3, 2, 1)),
            *("dsla-8-onenet", "dsla-8-fs", "dsla-8-sla", "dsla-8-sla-fs"),
        )
    ),
)


def declared(recipe: str) -> str | None:
    """Return the declared name that a recipe is, or is a variant of; None where there is none.

    The longest one: `skt-3-l2-dense-fsp-cpu` is no variant of `skt-3-l2`.
    """
    found = [name for name in DECLARED if recipe == name or recipe.startswith(f"{name}-")]
    return max(found, key=len, default=None)
