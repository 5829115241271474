"""The HTML templates of the pages: one way of loading them, which escapes every value and refuses an unknown name."""

from importlib import resources

import jinja2


def load(package: str, name: str) -> jinja2.Template:
    """The template ``name`` among the files of ``package``, which may include others of them.

    Text put into it is escaped, Markup is not.
    """

    def read(file: str) -> str:
        return resources.files(package).joinpath(file).read_text(encoding="utf-8")

    loader = jinja2.FunctionLoader(read)
    made = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, loader=loader)
    return made.get_template(name)
