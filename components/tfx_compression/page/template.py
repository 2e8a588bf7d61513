"""Renders reports. `base.html.jinja` has the style; each component's `report.html.jinja` has its content.

A report shows names that come from models, which may be hostile: markup and control characters are escaped, and a
Content-Security-Policy lets nothing run but the page's two scripts, and nothing be loaded.
"""

import base64
import hashlib
import importlib.resources
import json

import jinja2

from tfx_compression.page import plots
from tfx_compression.printable import printable


def render(package: str, title: str, **content: object) -> str:
    """Renders a report.

    Args:
      package: Name of the Python package with `report.html.jinja`, which extends `base.html.jinja`.
      title: Title of the page.
      **content: Variables of the template.

    Returns:
      HTML that needs no network: style, scripts and data are inside.
    """
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(name, ".") for name in (package, __package__)]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    environment.filters.update(script=_script)
    bundle = plots.bundle()
    script = importlib.resources.files(__package__).joinpath("page.js").read_text(encoding="utf-8")
    template = environment.get_template("report.html.jinja")
    return template.render(title=title, bundle=bundle, script=script, policy=_policy(bundle, script), **content)


def _policy(*scripts: str) -> str:
    """Returns a Content-Security-Policy under which only these scripts run."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{each}'" for each in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


def _script(value: object) -> str:
    """Returns a value as JSON that is safe inside a script element: `</script>` in a model's name doesn't end it."""
    return json.dumps(_printable(value)).replace("<", "\\u003c")


def _printable(value: object) -> object:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {_printable(name): _printable(item) for name, item in value.items()}
    return [_printable(item) for item in value] if isinstance(value, list | tuple) else value
