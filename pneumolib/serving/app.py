"""The script that Streamlit runs for each visitor, anew after each of their actions; `app_server` starts it."""

import sys

from pneumolib.serving.app_page import show

if __name__ == "__main__":
    show(sys.argv[1] if len(sys.argv) > 1 else None)
