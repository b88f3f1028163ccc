"""What all plots have in common: light axes and grid, text that stays text in an SVG. Needs the extra
`report`.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager

import matplotlib as mpl
from matplotlib.typing import RcKeyType


def plot_style(
    ink: str, faint: str, own: Mapping[RcKeyType, object]
) -> AbstractContextManager[None]:
    """The context in which figures are made and saved: `ink` is the colour of text, `faint` that of axes
    and grid, `own` matplotlib's settings beside the shared ones.
    """
    return mpl.rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "gyrfalcon",
            "text.parse_math": False,
            "font.size": 8.5,
            "legend.frameon": False,
            "axes.edgecolor": faint,
            "axes.labelcolor": ink,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": faint,
            "grid.linewidth": 0.5,
            "grid.alpha": 0.6,
            "text.color": ink,
            "xtick.color": faint,
            "ytick.color": faint,
            "xtick.labelcolor": ink,
            "ytick.labelcolor": ink,
            "lines.linewidth": 1.6,
            **own,
        }
    )
