"""What mkdocs does to the site's pages besides its plugins."""


def on_page_content(html, **kwargs):
    """Takes the quotes off types in docstrings, which are written as `int` there."""
    return html.replace("<code>`", "<code>").replace("`</code>", "</code>")
