// What a page can do beyond being read. Nothing here fetches anything, and without it the whole page can be read.
"use strict";

// Table of contents: open where there is room for it at the side; the section that is being read is marked.
{
  const contents = document.querySelector(".contents");
  const wide = matchMedia("(min-width: 64rem)");
  if (contents) {
    const links = [...contents.querySelectorAll("a")];
    const target = link => document.getElementById(decodeURIComponent(link.hash.slice(1)));
    const sections = links.map(link => [link, target(link)]).filter(([, heading]) => heading);
    const mark = () => {
      const reached = sections.filter(([, heading]) => heading.getBoundingClientRect().top < 100);
      const atEnd = scrollY > 0 && innerHeight + scrollY >= document.documentElement.scrollHeight - 2;
      const [current] = (atEnd ? sections : reached).at(-1) ?? [];
      for (const link of links) {
        if (link === current) link.setAttribute("aria-current", "location");
        else link.removeAttribute("aria-current");
      }
    };
    const unfold = () => { contents.open = wide.matches; };
    contents.addEventListener("click", event => { if (event.target.closest("a") && !wide.matches) contents.open = false; });
    wide.addEventListener("change", unfold);
    addEventListener("scroll", mark, { passive: true });
    addEventListener("resize", mark);
    unfold();
    mark();
  }
}

// One switch for all code. It follows what is open, and its last use holds for the other pages of this session.
{
  const button = document.querySelector(".code-switch");
  const blocks = [...document.querySelectorAll("details.code")];
  const memory = "pneumolib-code";
  const remember = value => { try { sessionStorage.setItem(memory, value); } catch { /* storage is switched off */ } };
  const recall = () => { try { return sessionStorage.getItem(memory); } catch { return null; } };
  const show = open => { for (const block of blocks) block.open = open; };
  const label = () => {
    const open = blocks.every(block => block.open);
    button.setAttribute("aria-pressed", open);
    button.textContent = open ? "Hide code" : "Show code";
  };
  if (button && blocks.length) {
    button.hidden = false;
    button.addEventListener("click", () => {
      const open = button.getAttribute("aria-pressed") !== "true";
      show(open);
      remember(open ? "shown" : "folded");
      label();
    });
    for (const block of blocks) block.addEventListener("toggle", label);
    if (recall() === "shown") show(true);
    label();
  }
}

// Figures open large in a dialog: by mouse or keyboard, closed by Esc or a click, and focus returns to the figure.
{
  const images = [...document.querySelectorAll("main img")].filter(image => !image.closest("a, button"));
  const dialog = document.createElement("dialog");
  dialog.className = "enlarged";
  dialog.setAttribute("aria-label", "Enlarged figure");
  dialog.innerHTML = '<button type="button">Close</button><div class="picture"><img alt=""></div><p></p>';
  const [large, words] = [dialog.querySelector("img"), dialog.querySelector("p")];
  let opener = null;
  const enlarge = (button, image) => {
    opener = button;
    large.src = image.currentSrc || image.src;
    large.alt = image.alt;
    large.style.setProperty("--natural", `${image.naturalWidth}px`);
    words.textContent = image.closest("figure")?.querySelector("figcaption")?.textContent ?? image.alt;
    dialog.showModal();
  };
  for (const image of images) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "enlarge";
    button.title = "Enlarge";
    image.replaceWith(button);
    button.append(image);
    button.addEventListener("click", () => enlarge(button, image));
  }
  if (images.length) {
    document.body.append(dialog);
    dialog.addEventListener("click", () => dialog.close());
    dialog.addEventListener("close", () => opener?.focus());
  }
}

// Index tables: rows that hold every word of the filter, sorted by a column's numbers or words.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];

  const box = document.querySelector(".filter");
  const [input, count] = [box.querySelector("input"), box.querySelector("output")];
  const filter = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) row.hidden = !words.every(word => row.textContent.toLowerCase().includes(word));
    const left = rows.filter(row => !row.hidden).length;
    count.textContent = words.length ? `${left} of ${rows.length}` : "";
  };
  input.addEventListener("input", filter);
  box.hidden = false;
  filter(); // a browser may have kept the box's text over a reload

  const value = (row, column) => row.cells[column].dataset.value;
  const sort = column => {
    const up = heads[column].getAttribute("aria-sort") !== "ascending";
    const numbers = rows.some(row => value(row, column) !== undefined);
    const compare = (a, b) => numbers
      ? Number(value(a, column)) - Number(value(b, column))
      : a.cells[column].textContent.localeCompare(b.cells[column].textContent, "en", { numeric: true });
    // Rows with nothing to sort by stay at the end, whatever the direction.
    const empty = row => numbers ? value(row, column) === undefined : !row.cells[column].textContent.trim();
    const [full, rest] = [rows.filter(row => !empty(row)), rows.filter(empty)];
    full.sort((a, b) => up ? compare(a, b) : compare(b, a));
    body.append(...full, ...rest);
    heads.forEach(head => head.removeAttribute("aria-sort"));
    heads[column].setAttribute("aria-sort", up ? "ascending" : "descending");
  };
  heads.forEach((head, column) => {
    if (!("sort" in head.dataset)) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => sort(column));
  });
}
