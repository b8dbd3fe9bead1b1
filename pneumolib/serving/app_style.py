"""The page's style beyond Streamlit's themes; colours of its own only where both light and dark have room for them."""

from pneumolib.serving.app_server import MOST_UPLOAD_MB

STYLE = """<style>
/* Streamlit's own head holds nothing here, and would lie over the banner. */
header[data-testid="stHeader"], [data-testid="stDecoration"] { display: none; }
[data-testid="stMainBlockContainer"] { max-width: 60rem; padding: 3.6rem 1.5rem 4rem; }
h1 { font-size: 1.9rem !important; }
h2, h3 { font-size: 1.35rem !important; }
[data-testid="stCaptionContainer"], [data-testid="stCaptionContainer"] * { color: inherit !important; opacity: 1 !important; }
.pn-banner { position: fixed; inset: 0 0 auto 0; z-index: 999991; padding: 0.45rem 1rem; text-align: center; font-weight: 600;
  background: #7a3300; color: #ffffff; }
/* What Streamlit shows of a file is its name, and hospitals write patients' names into it. What stands here instead. */
[data-testid="stFileChip"], [data-testid="stFileUploaderDropzoneInstructions"] { display: none !important; }
[data-testid="stFileUploaderDropzone"]::after { content: "or drop files here"; align-self: center; padding: 0 0.75rem; }
[data-testid="stFileUploaderDropzone"]:has([data-testid="stFileChip"])::after { content: "Reading …"; }
[data-testid="stFileUploaderDropzone"]:has([data-testid="stFileChip"][aria-invalid="true"])::after {
  content: "A file was refused: it is larger than MOST_UPLOAD_MB MB."; font-weight: 600; }
.pn-bar { position: relative; height: 1.1rem; margin: 0.35rem 0; border-radius: 0.2rem; overflow: hidden;
  background: color-mix(in srgb, currentColor 14%, transparent); }
.pn-fill { position: absolute; inset: 0 auto 0 0; }
.pn-threshold { position: absolute; top: 0; bottom: 0; width: 3px; margin-left: -1.5px; background: currentColor;
  outline: 1px solid rgba(127, 127, 127, 0.6); }
.pn-scale { position: relative; height: 1.3em; font-size: 0.85rem; }
.pn-scale span { position: absolute; white-space: nowrap; }
.pn-ends { display: flex; justify-content: space-between; font-size: 0.85rem; }
.pn-dot { display: inline-block; width: 0.75em; height: 0.75em; margin-right: 0.4em; border-radius: 50%; }
p.pn-head { font-size: 1.35rem; margin: 0 0 0.2rem; }
ul.pn-rows { list-style: none; margin: 0; padding: 0; }
.pn-rows li { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 1rem; margin: 0; padding: 0.35rem 0;
  border-bottom: 1px solid color-mix(in srgb, currentColor 18%, transparent); }
.pn-rows .pn-bar { flex: 1 0 100%; height: 0.7rem; }
.pn-name { overflow-wrap: anywhere; min-width: 0; }
.pn-error { overflow-wrap: anywhere; }
.pn-figure { margin: 0; }
.pn-figure img { display: block; width: 100%; height: auto; border-radius: 0.2rem; }
.pn-figure figcaption { font-size: 0.85rem; line-height: 1.4; margin-top: 0.3rem; }
.pn-trio { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); }
</style>""".replace("MOST_UPLOAD_MB", str(MOST_UPLOAD_MB))
