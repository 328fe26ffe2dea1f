"use strict";
// Draws the figures with plotly.js in the colours of the page, makes tables sortable, and says where one scrolls.

const dark = matchMedia("(prefers-color-scheme: dark)");
const touch = matchMedia("(pointer: coarse)").matches;
const panels = JSON.parse(document.getElementById("panels").textContent);

// Puts the value of a CSS variable in place of each text "var(--name)".
function coloured(value) {
  if (typeof value === "string") {
    const name = /^var\((--[\w-]+)\)$/.exec(value);
    return name ? getComputedStyle(document.documentElement).getPropertyValue(name[1]).trim() : value;
  }
  if (Array.isArray(value)) return value.map(coloured);
  if (value && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, coloured(inner)]));
  }
  return value;
}

function look(panel, narrow) {
  const axis = (own) => ({ automargin: true, gridcolor: "var(--line)", linecolor: "var(--line)", zeroline: false, ...own,
    title: { font: { size: 13 }, standoff: 8, ...own.title } });
  const own = panel.layout;
  const legend = { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom", bgcolor: "rgba(0,0,0,0)" };
  return coloured({ ...own, height: panel.height, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", size: 12, color: "var(--ink)" }, legend,
    margin: { l: 10, r: narrow ? 10 : 20, b: 10, t: 12 },
    hoverlabel: { bgcolor: "var(--card)", bordercolor: "var(--line)", font: { color: "var(--ink)" }, align: "left" },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: "var(--soft)", activecolor: "var(--ink)" },
    // With a finger, dragging has to scroll the page, and two fingers zoom it.
    dragmode: touch ? false : "zoom",
    xaxis: axis(own.xaxis), yaxis: axis(own.yaxis) });
}

function draw() {
  for (const [name, own] of Object.entries(panels)) {
    own.forEach((panel, index) => {
      const place = document.getElementById(`${name}-${index}`);
      Plotly.react(place, coloured(panel.data), look(panel, place.clientWidth < 500), {
        responsive: true,
        displaylogo: false,
        displayModeBar: touch ? false : "hover",
        // All buttons are named, because one of the usual ones would send the figure to a server.
        modeBarButtons: [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
        plotlyServerURL: "",
      });
    });
  }
}

// Numbers are compared by their value ("90.41 ±0.58", "1,024"), other texts as words.
function sort(table, column, button) {
  const body = table.tBodies[0];
  const down = button.getAttribute("aria-sort") === "descending";
  const value = (row) => row.cells[column].textContent.trim();
  const number = (text) => parseFloat(text.replace(/,(?=\d{3})/g, "").replace(/^[<>]/, ""));
  const rows = [...body.rows].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    const [p, q] = [number(x), number(y)];
    if (isNaN(p) || isNaN(q)) return isNaN(p) && isNaN(q) ? x.localeCompare(y) : isNaN(p) - isNaN(q);
    return down ? p - q : q - p;
  });
  if (rows.every((row) => isNaN(number(value(row)))) && !down) rows.reverse();
  body.append(...rows);
  for (const head of table.tHead.rows[0].cells) head.removeAttribute("aria-sort");
  button.setAttribute("aria-sort", down ? "ascending" : "descending");
}

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    head.tabIndex = 0;
    head.title = "Sort by this column";
    head.addEventListener("click", () => sort(table, column, head));
    head.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); sort(table, column, head); }
    });
  });
}

function hint() {
  for (const wide of document.querySelectorAll(".wide")) {
    wide.classList.toggle("scrolls", wide.scrollWidth > wide.clientWidth + 1);
  }
}

function print(begins) {
  document.documentElement.classList.toggle("paper", begins);
  draw();
}

hint();
addEventListener("resize", hint);
if (Object.keys(panels).length) {
  draw();
  dark.addEventListener("change", draw);
  addEventListener("beforeprint", () => print(true));
  addEventListener("afterprint", () => print(false));
}
