"""A page on this machine for looking: films, what networks say of them and where they look, and marked reports.

desk     what the page asks for: films, probabilities, overlays, reports; no network in it
guard    what is refused before anything is read: other hosts, other sites, uploads of other types or sizes
server   the page's addresses
page     the page itself: page.html, one file, nothing from elsewhere
"""
