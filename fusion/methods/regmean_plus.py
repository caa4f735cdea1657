"""RegMean++: RegMean on the inputs that layers get in the merged model instead of in their own."""

from dataclasses import replace

from fusion.methods import regmean

FORMULA = "as regmean, with X_i the inputs that corpus i gives model i's layer behind the already merged layers"
PAPER = "Nguyen et al. 2025, RegMean++: enhancing effectiveness and generalization of regression mean, arXiv:2508.03121"

# The arithmetic is RegMean's; what differs is how the Gram matrices come about: `collect_prefix` in fusion/prefix.py.
METHOD = replace(regmean.METHOD, name="regmean++", formula=FORMULA, paper=PAPER, statistics="gram++")
