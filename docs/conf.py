"""How Sphinx makes the site. The pages in docs/_src are written by `search_sdo.course.site`; see `make docs`."""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from search_sdo import __version__
from search_sdo.course.lessons import read_settings

course = read_settings(Path(__file__).parent.parent)["course"]
project, author, release = "SEARCH-SDO", "SEARCH-SDO contributors", __version__
copyright = "SEARCH-SDO contributors, BSD-3-Clause. Images: courtesy of NASA/SDO and the AIA, EVE, and HMI science teams"

extensions = ["myst_nb", "sphinx_design", "sphinx_copybutton"]
nb_execution_mode = "off"                      # they were run before
nb_merge_streams = True
myst_enable_extensions = ["colon_fence", "deflist", "fieldlist", "attrs_block"]
myst_heading_anchors = 3
suppress_warnings = ["mystnb.unknown_mime_type"]

repository = f"https://github.com/{course['user']}/{course['repo']}"
html_theme = "sphinx_book_theme"
html_title = "SEARCH-SDO"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = dict(
    repository_url=repository, repository_branch=course["branch"], path_to_docs="",
    use_repository_button=True, use_issues_button=True, use_download_button=False, home_page_in_toc=True,
    launch_buttons=dict(colab_url="https://colab.research.google.com", binderhub_url="https://mybinder.org", notebook_interface="jupyterlab"),
    navbar_persistent=[],                      # one search box, not two
    pygments_light_style="tango", pygments_dark_style="monokai",
)
