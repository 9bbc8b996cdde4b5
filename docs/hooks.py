"""What mkdocs does to the site's pages besides its plugins."""

import json
from pathlib import Path

from mkdocs.structure.files import File


def on_files(files, config):
    """Makes a page of each notebook under howto/; a link to the notebook stands under its title."""
    for path in sorted(Path(config.docs_dir, "howto").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        title, *rest = [as_markdown(cell) for cell in cells]
        heading, _, text = title.partition("\n")
        link = f"[Download the notebook]({path.name})"
        content = "\n\n".join([heading, link, text, *rest])
        files.append(File.generated(config, f"howto/{path.stem}.md", content=content))
    return files


def as_markdown(cell):
    text = "".join(cell["source"])
    return text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```"


def on_page_content(html, **kwargs):
    """Takes the quotes off types in docstrings, which are written as `int` there."""
    return html.replace("<code>`", "<code>").replace("`</code>", "</code>")
