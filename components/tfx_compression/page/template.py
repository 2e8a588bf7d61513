"""Renders reports. `base.html.jinja` has style and scripts; each component's `report.html.jinja` has its content."""

import json

import jinja2

from tfx_compression.page import plots


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
    )
    environment.filters.update(script=_script)
    return environment.get_template("report.html.jinja").render(title=title, bundle=plots.bundle(), **content)


def _script(value: object) -> str:
    """Returns a value as JSON that is safe inside a script element: `</script>` in a model's name doesn't end it."""
    return json.dumps(value).replace("<", "\\u003c")
