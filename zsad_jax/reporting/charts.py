"""Small SVG charts: curves and histograms."""

from collections.abc import Mapping, Sequence

_WIDTH, _HEIGHT = 190, 150
_LEFT, _TOP, _RIGHT, _BOTTOM = 30, 18, 8, 28
COLOURS = ("var(--normal)", "var(--anomalous)")


def curve(
  title: str,
  points: tuple[Sequence[float], Sequence[float]],
  *,
  labels: tuple[str, str],
  x_end: float = 1.0,
) -> str:
  """Return a curve in [0, x_end] x [0, 1] as SVG.

  Args:
    title: title of the chart.
    points: x and y.
    labels: labels of both axes.
    x_end: last value of the x axis.
  """
  point = lambda x, y: f"{_x(x / x_end):.1f},{_y(y):.1f}"
  path = " ".join(point(x, y) for x, y in zip(*points) if 0 <= x <= x_end)
  ticks = [(0.0, "0"), (0.5, f"{x_end / 2:g}"), (1.0, f"{x_end:g}")]
  line = f'<polyline class="curve" points="{path}"/>'
  return _frame(title, labels, ticks, [(0, "0"), (1, "1")], line)


def histogram(
  title: str, counts: Mapping[str, Sequence[int]], edges: Sequence[float]
) -> str:
  """Return two overlaid histograms as SVG.

  Args:
    title: title of the chart.
    counts: counts by name, each one shorter than `edges`.
    edges: edges of the bins.
  """
  highest = max([1, *(c for row in counts.values() for c in row)])
  width = (_WIDTH - _LEFT - _RIGHT) / (len(edges) - 1)
  bars, names = [], []
  for i, (colour, name) in enumerate(zip(COLOURS, counts)):
    names.append(
      f'<text x="{_WIDTH - _RIGHT - 2}" y="{_TOP + 10 + 10 * i}" '
      f'text-anchor="end" style="fill:{colour}">{name}</text>'
    )
  for colour, row in zip(COLOURS, counts.values()):
    for i, count in enumerate(row):
      if count:
        y = _y(count / highest)
        bars.append(
          f'<rect x="{_LEFT + i * width:.1f}" y="{y:.1f}" '
          f'width="{width:.1f}" height="{_y(0) - y:.1f}" fill="{colour}"/>'
        )
  ticks = [(0.0, f"{edges[0]:.3g}"), (1.0, f"{edges[-1]:.3g}")]
  bars = f'<g fill-opacity="0.6">{"".join(bars)}</g>{"".join(names)}'
  vertical = [(0, "0"), (1, str(highest))]
  return _frame(title, ("score", "images"), ticks, vertical, bars)


def _x(fraction):
  return _LEFT + fraction * (_WIDTH - _LEFT - _RIGHT)


def _y(fraction):
  return _HEIGHT - _BOTTOM - fraction * (_HEIGHT - _TOP - _BOTTOM)


def _frame(title, labels, x_ticks, y_ticks, content):
  """Return the chart: title, axes and their labels around the content."""
  text = [
    f'<text x="{_LEFT}" y="11" class="title">{title}</text>',
    f'<text x="{_x(0.5):.0f}" y="{_HEIGHT - 4}" text-anchor="middle">'
    f"{labels[0]}</text>",
    f'<text transform="translate(9 {_y(0.5):.0f}) rotate(-90)" '
    f'text-anchor="middle">{labels[1]}</text>',
  ]
  text += [
    f'<text x="{_x(at):.0f}" y="{_y(0) + 11:.0f}" '
    f'text-anchor="{"end" if at == 1 else "middle"}">{label}</text>'
    for at, label in x_ticks
  ]
  text += [
    f'<text x="{_LEFT - 4}" y="{_y(at) + 3:.0f}" text-anchor="end">'
    f"{label}</text>"
    for at, label in y_ticks
  ]
  box = (
    f'<rect class="box" x="{_LEFT}" y="{_TOP}" '
    f'width="{_WIDTH - _LEFT - _RIGHT}" height="{_HEIGHT - _TOP - _BOTTOM}"/>'
  )
  return (
    f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
    f'aria-label="{title}">{box}{content}{"".join(text)}</svg>'
  )
