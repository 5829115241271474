"""The HTML templates of the pages: one way of loading them, which escapes every value and refuses an unknown name."""

from importlib import resources

import jinja2


def load(package: str, name: str) -> jinja2.Template:
    """The template ``name`` among the files of ``package``; text put into it is escaped, Markup is not."""
    source = resources.files(package).joinpath(name).read_text(encoding="utf-8")
    return jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True).from_string(source)
