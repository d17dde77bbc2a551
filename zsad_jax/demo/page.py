"""The page, made with Gradio, and its application."""

import functools
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import fastapi
import gradio as gr  # pyright: ignore[reportMissingImports]
from gradio.themes import Default  # pyright: ignore[reportMissingImports]

from zsad_jax.demo import display, scoring

_log = logging.getLogger(__name__)
_USER = "zsad"  # Name to log in with.
_KEPT = 3600  # Seconds that uploaded files and results are kept.
# Nothing is loaded from other servers or sent to them.
_POLICY = (
  "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; "
  "form-action 'self'; frame-ancestors 'self'"
)
_PROGRESS = gr.Progress()  # Gradio fills in that of the call.
_FONTS = ["system-ui", "sans-serif"]
_MONO = ["ui-monospace", "monospace"]
_CSS = """
.gradio-container { max-width: 1500px !important; }
#overlay img { object-fit: contain; }
#verdict { font-size: 1.15rem; }
"""


def application(
  scorer: scoring.Scorer,
  *,
  title: str,
  notes: Sequence[str] = (),
  token: str = "",
) -> fastapi.FastAPI:
  """Return the application of the page.

  Args:
    scorer: scores the images.
    title: of the page.
    notes: lines below it.
    token: that users log in with; "" for none.
  """
  app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

  @app.middleware("http")
  async def restrict(
    request: fastapi.Request,
    answer: Callable[[fastapi.Request], Awaitable[fastapi.Response]],
  ) -> fastapi.Response:
    found = await answer(request)
    found.headers["Content-Security-Policy"] = _POLICY
    return found

  return gr.mount_gradio_app(
    app,
    blocks(scorer, title=title, notes=notes),
    path="",
    auth=(_USER, token) if token else None,
    max_file_size=scorer.limits.max_bytes,
    show_error=True,
    run_history=False,
    ssr_mode=False,
    footer_links=[],
    theme=Default(font=_FONTS, font_mono=_MONO),
    css=_CSS,
  )


def blocks(
  scorer: scoring.Scorer, *, title: str, notes: Sequence[str] = ()
) -> gr.Blocks:
  """Return the elements of the page; see `application`."""
  with gr.Blocks(
    title=title, analytics_enabled=False, delete_cache=(_KEPT, _KEPT)
  ) as page:
    gr.Markdown(f"# {display.plain(title)}", elem_id="title")
    for note in notes:
      gr.Markdown(display.plain(note))
    batch = gr.State(scoring.Batch(), time_to_live=_KEPT)
    with gr.Row():
      with gr.Column(scale=2, min_width=300):
        files = _files("Images", "images")
        references = _references(scorer)
        button = gr.Button("Score", variant="primary", elem_id="score")
        summary = gr.Markdown(elem_id="summary")
        reset = gr.Button(
          "Thresholds of the detector", elem_id="reset", visible=False
        )
        sliders = [
          _slider("Threshold of the score", "threshold"),
          _slider("Threshold of the pixels (outlines, regions)", "pixel"),
        ]
      with gr.Column(scale=5, min_width=300):
        name = gr.Dropdown(
          [], label="Image", elem_id="name", visible=False, interactive=True
        )
        shown = _shown()
    results = _table(display.RESULT_COLUMNS, "All images", "results")
    outputs = [summary, *shown, results]
    button.click(
      _begin, [files], [summary], queue=False, show_progress="hidden"
    ).then(
      functools.partial(_score, scorer),
      [files, references],
      [batch, name, reset, *sliders, *outputs],
      concurrency_limit=1,
    )
    reset.click(_reset, [batch, name], [*sliders, *outputs])
    for element in (*sliders, name):
      element.input(
        _update,
        [batch, name, *sliders],
        outputs,
        trigger_mode="always_last",
        show_progress="hidden",
      )
  return page


def _files(label, name, **options) -> gr.File:
  return gr.File(
    label=label, elem_id=name, file_count="multiple", height=170, **options
  )


def _references(scorer: scoring.Scorer) -> gr.File:
  """Return the element for references, hidden where they are fixed."""
  given = scorer.num_references
  with gr.Accordion(
    "References (normal images)",
    open=False,
    visible=scorer.accepts_references,
  ):
    if given:
      gr.Markdown(f"Without any, the {given} of the command line are used.")
    return _files("References", "references")


def _slider(label: str, name: str) -> gr.Slider:
  return gr.Slider(
    0,
    1,
    step=display.STEP,
    label=label,
    elem_id=name,
    visible=False,
    interactive=True,
    buttons=[],
  )


def _shown() -> list[Any]:
  """Return the elements that show one image."""
  return [
    gr.Markdown(elem_id="verdict"),
    gr.Image(
      type="pil",
      format="png",
      label="Anomaly map over the image",
      elem_id="overlay",
      interactive=False,
      visible=False,
      buttons=["download", "fullscreen"],
    ),
    gr.Markdown(elem_id="note"),
    _table(display.REGION_COLUMNS, "Regions by decreasing peak", "regions"),
  ]


def _table(columns: Sequence[str], label: str, name: str) -> gr.Dataframe:
  return gr.Dataframe(
    headers=list(columns),
    label=label,
    elem_id=name,
    interactive=False,
    visible=False,
  )


def _begin(files: list[str] | None) -> str:
  """Return the line that is shown while images are scored."""
  number = len(files or [])
  return f"Scoring {number} image{'s' if number != 1 else ''}."


def _score(
  scorer: scoring.Scorer,
  files: list[str] | None,
  references: list[str] | None,
  progress: Any = _PROGRESS,
) -> list[Any]:
  """Score the uploaded files; the answer to the button."""
  try:
    batch = scorer.score(
      files or [],
      references or [],
      lambda done, total: progress((done, total), unit="images"),
    )
  except scoring.Refused as error:
    batch = scoring.Batch(messages=(str(error),))
  except Exception as error:
    _log.error("internal error: %s: %s", type(error).__name__, error)
    text = "internal error; the console has the reason."
    batch = scoring.Batch(messages=(text,))
  names = [item.name for item in batch.scored]
  first = names[0] if names else None
  name = gr.Dropdown(choices=names, value=first, visible=len(names) > 1)
  scales = display.scales(batch)
  sliders = [
    gr.Slider(
      minimum=scale.low,
      maximum=scale.high,
      step=scale.step,
      value=scale.start,
      visible=bool(names),
    )
    for scale in scales
  ]
  values = [scale.start for scale in scales]
  reset = gr.Button(visible=bool(names))
  return [batch, name, reset, *sliders, *_update(batch, first, *values)]


def _reset(batch: scoring.Batch, name: str | None) -> list[Any]:
  """Show an image with the thresholds of the detector."""
  values = [scale.start for scale in display.scales(batch)]
  return [*values, *_update(batch, name, *values)]


def _update(
  batch: scoring.Batch, name: str | None, score: int | float, pixel: int | float
) -> list[Any]:
  """Show an image with the thresholds of the sliders."""
  items = [item for item in batch.scored if item.name == name]
  if not items:
    hidden = [gr.Image(visible=False), "", gr.Dataframe(visible=False)]
    return [display.left_out(batch), "", *hidden, gr.Dataframe(visible=False)]
  values = display.chosen(batch, float(score), float(pixel))
  summary = display.summary(batch, values)
  view = display.view(items[0], values)
  rows = display.result_rows(batch.scored, values)
  return [
    summary,
    view.verdict,
    gr.Image(view.overlay, visible=True),
    view.note,
    gr.Dataframe(view.regions, visible=bool(view.regions)),
    gr.Dataframe(rows, visible=len(rows) > 1),
  ]
