"""The merge methods, in one explicit table. A method is one file: its formula, paper, parameters and arithmetic.

To add one: write fusion/methods/<name>.py after the pattern in call.py, and add its row below.
"""

from fusion.methods import (
    arcee_fusion,
    breadcrumbs,
    breadcrumbs_ties,
    consensus,
    dare_linear,
    dare_ties,
    della,
    della_linear,
    emr,
    fisher,
    iso_c,
    karcher,
    linear,
    model_stock,
    multislerp,
    nearswap,
    nuslerp,
    passthrough,
    ram,
    ramplus_tl,
    regmean,
    regmean_plus,
    sce,
    slerp,
    task_arithmetic,
    ties,
    tsv,
    varm,
)
from fusion.methods.method import Method

METHODS: dict[str, Method] = {
    row.name: row
    for row in (
        regmean.METHOD,
        regmean_plus.METHOD,
        fisher.METHOD,
        linear.METHOD,
        task_arithmetic.METHOD,
        ties.METHOD,
        dare_linear.METHOD,
        dare_ties.METHOD,
        della.METHOD,
        della_linear.METHOD,
        breadcrumbs.METHOD,
        breadcrumbs_ties.METHOD,
        consensus.METHOD,
        emr.METHOD,
        slerp.METHOD,
        nuslerp.METHOD,
        multislerp.METHOD,
        karcher.METHOD,
        model_stock.METHOD,
        sce.METHOD,
        varm.METHOD,
        ram.METHOD,
        ramplus_tl.METHOD,
        nearswap.METHOD,
        arcee_fusion.METHOD,
        passthrough.METHOD,
        tsv.METHOD,
        iso_c.METHOD,
    )
}
