"use strict";

const ROWS = 100; // of a heatmap at a time
const spec = (box) => JSON.parse(box.querySelector("script").textContent);
const make = (name, text, options = {}) => {
  const element = document.createElement(name);
  element.textContent = text;
  return Object.assign(element, options);
};
const percent = (rate) => `${(100 * rate).toFixed(1)} %`;

// What is pointed at or has the focus says its data-tip.
const tip = document.getElementById("tip");
let teller = null;
const hide = () => { tip.hidden = true; };
const place = () => {
  const at = teller.getBoundingClientRect();
  const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
  const left = Math.min(at.left + at.width / 2 - tip.offsetWidth / 2, room);
  const above = at.top - tip.offsetHeight - 6;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${above > 8 ? above : at.bottom + 6}px`;
};
const tell = (event) => {
  teller = event.target.closest?.("[data-tip]");
  if (!teller) return hide();
  tip.textContent = teller.dataset.tip;
  tip.hidden = false;
  place();
};
document.addEventListener("mouseover", tell);
document.addEventListener("focusin", tell);
document.addEventListener("focusout", hide);
document.addEventListener("scroll", () => { if (!tip.hidden) place(); }, true);
document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });

// One of several elements is reached by Tab, its neighbours by the arrow keys.
const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
const move = (from, to, event) => {
  if (!to) return;
  event.preventDefault();
  from.tabIndex = -1;
  to.tabIndex = 0;
  to.focus();
};

for (const group of document.querySelectorAll("[data-rove]")) {
  const items = [...group.querySelectorAll("[data-tip]")];
  items[0].tabIndex = 0;
  group.addEventListener("keydown", (event) => {
    const [down, along] = STEPS[event.key] ?? [0, 0];
    const at = items.indexOf(event.target);
    if (down + along && at >= 0) move(event.target, items[at + down + along], event);
  });
}

// The ends of the 95 % Wilson interval, as in aigtool/intervals.py.
const wilson = (count, total) => {
  const z2 = 1.959964 ** 2;
  const middle = (count + z2 / 2) / (total + z2);
  const spread = Math.sqrt(z2 * (count * (total - count) / total + z2 / 4)) / (total + z2);
  return [count ? middle - spread : 0, count < total ? middle + spread : 1];
};

class Heatmap {
  constructor(box) {
    this.data = spec(box);
    this.table = box.querySelector("table");
    this.said = box.querySelector("output");
    this.select = box.querySelector("select");
    this.pages = box.querySelector(".pages");
    this.filter = "";
    this.page = 0;
    this.sort = { column: -1, down: false };
    const { rows, columns, executed, images, rates, kind } = this.data;
    this.rates = rates ?? executed.map((row, at) => row.map((count) => count / images[at]));
    const means = this.rates.map((row) => row.reduce((sum, rate) => sum + rate, 0) / row.length);
    this.texts = [[kind[0], rows], ...(images ? [["images", images]] : []), ["mean", means]];
    this.headings = [...this.texts.map(([name]) => name), ...columns];
    this.table.classList.toggle("many", columns.length > 30);
    this.drawHead();
    this.draw();
    box.querySelector("input").addEventListener("input", (event) => {
      this.filter = event.target.value.toLowerCase();
      this.page = 0;
      this.draw();
    });
    this.select.addEventListener("change", () => this.sortBy(Number(this.select.value)));
    this.pages.addEventListener("click", (event) => {
      this.page += Number(event.target.value ?? 0);
      this.draw();
    });
    this.table.tHead.addEventListener("click", (event) => this.sortAt(event));
    this.table.addEventListener("keydown", (event) => {
      const cell = event.target.closest("td, th");
      const [down, along] = STEPS[event.key] ?? [0, 0];
      if (down || along) {
        const row = this.table.rows[cell.parentNode.rowIndex + down];
        const { offsetHeight, offsetWidth } = this.table.tHead.rows[0].cells[0]; // what stays in sight
        this.table.parentNode.style.scrollPadding = `${offsetHeight}px 0 0 ${offsetWidth}px`;
        move(cell, row?.cells[cell.cellIndex + along], event);
      } else if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        this.sortAt(event);
      }
    });
  }

  value(row, column) {
    const lead = this.texts[column];
    return lead ? lead[1][row] : this.rates[row][column - this.texts.length];
  }

  heading(column) {
    const own = column - this.texts.length;
    return own < 0 ? this.headings[column] : `${this.data.kind[1]} ${this.headings[column]}`;
  }

  drawHead() {
    const row = this.table.tHead.insertRow();
    this.headings.forEach((name, column) => {
      const own = column - this.texts.length;
      const cell = make("th", "", { scope: "col", tabIndex: column ? -1 : 0 });
      cell.append(column ? make("span", name) : name);
      const about = this.data.about[own];
      cell.dataset.tip = `${this.heading(column)}${about ? `, ${about}` : ""}; sort by it`;
      cell.classList.toggle("edge", this.data.edges.includes(own));
      row.append(cell);
    });
    const first = `${this.data.images ? "likeness: those alike together" : "order of execution"}`;
    this.select.append(make("option", first, { value: -1 }));
    this.headings.forEach((_, column) => {
      this.select.append(make("option", this.heading(column), { value: column }));
    });
  }

  sortAt(event) {
    const cell = event.target.closest("thead th");
    if (cell) this.sortBy(cell.cellIndex);
  }

  sortBy(column) {
    const again = column === this.sort.column;
    this.sort = { column, down: again ? !this.sort.down : column > 0 };
    this.page = 0;
    this.draw();
  }

  shown() {
    const { column, down } = this.sort;
    const kept = this.data.order.filter((row) => this.data.rows[row].toLowerCase().includes(this.filter));
    if (column < 0) return kept;
    const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b);
    return kept.sort((a, b) => (down ? -1 : 1) * compare(this.value(a, column), this.value(b, column)));
  }

  draw() {
    const rows = this.shown();
    const last = Math.max(0, Math.ceil(rows.length / ROWS) - 1);
    this.page = Math.max(0, Math.min(this.page, last));
    const start = ROWS * this.page;
    const page = rows.slice(start, start + ROWS);
    this.table.tBodies[0].replaceChildren(...page.map((row) => this.row(row)));
    const { column, down } = this.sort;
    [...this.table.tHead.rows[0].cells].forEach((cell, at) => {
      if (at === column) cell.ariaSort = down ? "descending" : "ascending";
      else cell.removeAttribute("aria-sort");
    });
    this.select.value = column;
    this.pages.hidden = last === 0;
    const [back, on] = this.pages.children;
    [back.disabled, on.disabled] = [this.page === 0, this.page === last];
    const span = last ? `${start + 1} to ${start + page.length} of ` : "";
    const found = rows.length < this.data.rows.length ? ` found of ${this.data.rows.length}` : "";
    const order = column < 0 ? "" : `, by ${this.heading(column)}, ${down ? "highest" : "lowest"} first`;
    // Cells are new: one of the table is to be reached by Tab.
    if (!this.table.querySelector('[tabindex="0"]')) this.table.querySelector("th").tabIndex = 0;
    this.said.textContent = `Rows: ${span}${rows.length}${found}${order}`;
  }

  row(row) {
    const line = document.createElement("tr");
    const lead = this.texts.map(([name, values], column) => {
      const value = values[row];
      if (!column) return make("th", value, { scope: "row", tabIndex: -1, title: value });
      return make("td", name === "mean" ? percent(value) : value.toLocaleString("en"), { tabIndex: -1 });
    });
    const cells = this.rates[row].map((rate, column) => {
      const cell = make("td", Math.round(100 * rate), { tabIndex: -1 });
      cell.className = `h${Math.round(20 * rate)}`;
      if (this.data.edges.includes(column)) cell.classList.add("edge");
      cell.dataset.tip = this.told(row, column, rate);
      return cell;
    });
    line.append(...lead, ...cells);
    return line;
  }

  told(row, column, rate) {
    const { rows, columns, kind, executed, images } = this.data;
    const where = `${kind[0]} ${rows[row]}, ${kind[1]} ${columns[column]}: ${percent(rate)}`;
    if (!images) return where;
    const [low, high] = wilson(executed[row][column], images[row]);
    const count = `${executed[row][column]} of ${images[row]} images`;
    return `${where}, ${count}; 95 % interval ${percent(low)} to ${percent(high)}`;
  }
}

document.querySelectorAll(".heatmap").forEach((box) => new Heatmap(box));

// The library reads a little HTML in texts, so they come escaped.
const unescaped = (text) => new DOMParser().parseFromString(text, "text/html").documentElement.textContent;

function draw(box) {
  const [plot, spoken] = [box.querySelector(".plot"), box.querySelector("output")];
  const { data, layout } = spec(box);
  Object.assign(layout, {
    margin: { l: 56, r: 12, t: 8, b: 44 },
    font: { size: 12, family: "system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif" },
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", traceorder: "normal" },
    paper_bgcolor: "transparent",
    plot_bgcolor: "transparent",
    hovermode: "closest",
    dragmode: false,
  });
  Plotly.newPlot(plot, data, layout, { displayModeBar: false, responsive: true });
  let [series, point] = [0, -1];
  plot.addEventListener("keydown", (event) => {
    const [down, along] = STEPS[event.key] ?? [0, 0];
    if (!down && !along) return;
    event.preventDefault();
    series = Math.max(0, Math.min(series + down, data.length - 1));
    point = Math.max(0, Math.min(point + along, data[series].x.length - 1));
    Plotly.Fx.hover(plot, [{ curveNumber: series, pointNumber: point }]);
    spoken.textContent = unescaped(data[series].hovertext[point]);
  });
}

// The library takes a second to start: the page opens first, then curve after curve is drawn, those
// of a run that is folded away when it is opened.
const waiting = new Set(document.querySelectorAll(".chart"));
const drawNext = () => {
  const box = [...waiting].find((chart) => !chart.closest(".run:not([open])"));
  if (!box) return false;
  if (!window.Plotly) document.body.append(make("script", document.getElementById("plotly").textContent));
  waiting.delete(box);
  draw(box);
  return true;
};
const drawRest = () => { if (drawNext()) setTimeout(drawRest); };
addEventListener("load", () => setTimeout(drawRest));
document.addEventListener("toggle", () => { if (document.readyState === "complete") drawRest(); }, true);
addEventListener("beforeprint", () => {
  for (const folded of document.querySelectorAll("details")) folded.open ||= !folded.closest(".chart");
  while (drawNext());
});
