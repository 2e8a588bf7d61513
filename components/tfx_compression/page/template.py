"""Fills in a report's template: style and scripts are in `base.html.jinja`, the content in the component's own."""

import json

import jinja2

from tfx_compression.page import plots


def render(package: str, title: str, **content: object) -> str:
    """The page of `report.html.jinja` in the Python package `package`, which extends `base.html.jinja`.

    Returns:
      HTML with style, scripts and data inside: it needs no network.
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
    """JSON in which nothing ends a script element: `</script>` in a model's name is no tag."""
    return json.dumps(value).replace("<", "\\u003c")
