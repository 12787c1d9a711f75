"""The words of the page that no result changes: what was done, how to read it, how to repeat it.

What was found is never here: sentences about results are made of the results.
"""

from tools.quality_grid import GUARD_WARMUP, STEPS
from tools.quality_tune import BUDGET

__all__ = ["BEST", "DISTRIBUTION", "FIDELITY", "GUARD", "PICTURES", "QUICK", "SPEED", "TITLE", "TUNED"]

TITLE = """
# What forecasting costs in quality

Three small models of our own ([flux-emoji](../models/flux-emoji/README.md), [dit-emoji](../models/dit-emoji/README.md),
[hunyuan-video-emoji](../models/hunyuan-video-emoji/README.md)), and every picture beside the same one with every step
full: the same model, prompt, seed and number of steps. They are no evidence for large models, but anyone can repeat
every figure on a laptop:

```sh
python -m tools.quality_study           # everything; goes on where it was interrupted
python -m tools.quality_study --quick   # a small form in minutes, on a page of its own
```

Numbers are medians over requests with the 95 % interval of a bootstrap over them. Gains are of the same request with
one schedule and the other. Each request has a prompt and a seed of its own; those of `hunyuan-video-emoji` are pairs of
emoji and motion that its training never showed. One bundle of each model, built for order 4 in the layout `history`,
made all pictures of the grid: interval, order and predictor are numbers that a request brings along, and nothing is
built again for them. This page, its findings included, is written from the results by `tools/quality_page.py`.
"""

QUICK = """
**This is the quick form:** of two or four requests each. It shows that everything works and says little about the
models.
"""

FIDELITY = f"""
{STEPS} steps; warm-up and start of the derivatives are the preset's of each model. Where a cell has two numbers, reuse
is the first. *Error* is the root mean square error that the median PSNR stands for. *Changes between frames* is how far
what changes from frame to frame is from the reference's, relative to that; 0 is perfect.
"""

BEST = """
The best of everything that was tried, at each interval. It was chosen on the very requests that it is shown for, so its
gain is rather too large; `taylorseer tune`, below, is measured on others.
"""

GUARD = f"""
With {GUARD_WARMUP} warm-up steps the first forecasts reach up to N - 1 steps ahead of a difference over one step, and
their weights sum to 2 N - 1 in magnitude. That is what rounding noise may grow by, and what a wrong slope is multiplied
with. Two guards bound it (`--guard lower-order`, `--guard spread-warmup`), both at the same number of full steps:
"""

DISTRIBUTION = """
Squared Fréchet distances between features of [emoji-classifier](../models/emoji-classifier/README.md), and how often it
sees the category that the prompt asked for. The samples of a model have the same prompts and seeds whatever the
forecasts. Frames of clips count one by one, and are drawn again clip by clip. The real emoji are all of the data set:
`flux-emoji` knows 24 of them and `hunyuan-video-emoji` 68, in motion, so their distance to all is large whatever
the schedule, and only its change says something.
"""

SPEED = """
Whole requests, prepare included, on the folded bundle that the preset builds, beside the same bundle with every step
full, in turns; PSNR of the very pictures that were timed. Eta is the speed-up over steps per full step, 1 is perfect.
*Beside history* is the same against the `history` bundle with every step full, whose full engine folds nothing. Again,
on a quiet machine: `python -m tools.quality_study --only speed --only page --again`. On a GPU:
[performance.md](performance.md).
"""

TUNED = f"""
What [`taylorseer tune`](tuning.md) finds with {BUDGET} of {STEPS} full steps, and what it gains over the preset at this
budget on other prompts and other noise than it was calibrated on. None of these requests is in the tables above;
`flux-emoji`, which knows 24 emoji, has prompts in common with them, with other noise.
"""

PICTURES = """
The first requests of each grid, none left out, on the model's preset:

```sh
python -m tools.quality_study --only sheets
```
"""
