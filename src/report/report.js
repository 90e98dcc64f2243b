"use strict";
// Draws the curves of a report: JSON in #curve-data, a figure for each panel. No text of the data becomes HTML.
(() => {
  const source = document.getElementById("curve-data");
  if (!source) return;
  const { runs, panels } = JSON.parse(source.textContent);
  const state = { smooth: 0.6, log: false, hidden: new Set() };
  const MARGIN = { left: 50, right: 12, top: 12, bottom: 24 }, HEIGHT = 180;

  const element = (name, attributes, parent) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (parent) parent.append(made);
    return made;
  };

  const format = (value) => {
    if (value === null) return "not finite";
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size >= 1e5 || size < 1e-3) return value.toExponential(2).replace("e+", "e").replace("-", "−");
    return Number(value.toPrecision(4)).toString().replace("-", "−");
  };

  // Exponential mean with its bias corrected, as Adam's: the first values do not count as zeros before them. A point of
  // a thinned curve stands for several values, whose mean it has.
  const smoothed = (values, weight, counts) => {
    let mean = 0, seen = 0;
    return values.map((value, at) => {
      if (value === null) return null;
      const keep = weight ** (counts?.[at] ?? 1);
      mean = keep * mean + (1 - keep) * value;
      seen = keep * seen + (1 - keep);
      return mean / seen;
    });
  };

  const ticks = (low, high, count) => {
    const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((times) => times * power).find((size) => size >= rough * 0.99);
    const found = [];
    for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-6; at += step) found.push(Math.abs(at) < step / 1e6 ? 0 : at);
    return found;
  };

  const logTicks = (low, high) => {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
      for (const times of [1, 2, 5]) found.push(times * 10 ** power);
    const inside = found.filter((at) => at >= low && at <= high);
    return inside.length > 1 ? inside : ticks(low, high, 3).filter((at) => at > 0);
  };

  // Points of a curve as a path; a value that is not finite interrupts it.
  const path = (xs, ys) => {
    let text = "", pen = "M";
    xs.forEach((x, at) => {
      if (ys[at] === null) { pen = "M"; return; }
      text += `${pen}${x.toFixed(1)} ${ys[at].toFixed(1)}`;
      pen = "L";
    });
    return text;
  };

  const draw = (figure) => {
    const panel = panels[figure.dataset.panel];
    const shown = panel.series.filter((line) => !state.hidden.has(line.run));
    figure.querySelector("svg")?.remove();
    figure.querySelector(".tip")?.remove();
    const width = Math.max(figure.clientWidth - 20, 160);
    const svg = element("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", tabindex: 0 }, figure);
    svg.setAttribute("aria-label", `${panel.title}: ${shown.map((line) => `${runs[line.run]} ends at ${format(line.y.at(-1))}`).join(", ")}`);
    const values = shown.flatMap((line) => [...line.y, ...(line.chance ?? [])]).filter((value) => value !== null);
    if (!values.length) return;
    const log = state.log && panel.loss && values.every((value) => value > 0);
    let low = Math.min(...values), high = Math.max(...values);
    if (!log && low > 0 && low < 0.6 * high) low = 0;
    if (low === high) [low, high] = [low - Math.abs(low) / 10 - 1e-9, high + Math.abs(high) / 10 + 1e-9];
    const [first, last] = [0, Math.max(...shown.map((line) => line.x.at(-1)), 1)];
    const scale = log ? Math.log : (value) => value;
    const x = (step) => MARGIN.left + ((step - first) / (last - first)) * (width - MARGIN.left - MARGIN.right);
    const y = (value) => HEIGHT - MARGIN.bottom - ((scale(value) - scale(low)) / (scale(high) - scale(low))) * (HEIGHT - MARGIN.top - MARGIN.bottom);
    for (const at of log ? logTicks(low, high) : ticks(low, high, 4)) {
      element("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(at), y2: y(at) }, svg);
      element("text", { x: MARGIN.left - 6, y: y(at) + 4, "text-anchor": "end" }, svg).textContent = format(at);
    }
    for (const at of ticks(first, last, 4))
      element("text", { x: x(at), y: HEIGHT - 7, "text-anchor": at > last * 0.93 ? "end" : "middle" }, svg).textContent = format(at);
    const lines = shown.map((line) => {
      const look = `s${line.run % 6} dash${Math.floor(line.run / 6) % 3}`, mean = panel.exact ? line.y : smoothed(line.means ?? line.y, state.smooth, line.counts);
      const xs = line.x.map(x), place = (value) => (value === null ? null : y(value));
      element("path", { class: `raw ${look}`, d: path(xs, line.y.map(place)) }, svg);
      element("path", { class: `mean ${look}`, d: path(xs, mean.map(place)) }, svg);
      if (line.chance) element("path", { class: `chance ${look}`, d: path(xs, line.chance.map(place)) }, svg);
      if (line.x.length === 1) element("circle", { class: `mean ${look}`, cx: xs[0], cy: place(line.y[0]) ?? -9, r: 3 }, svg);
      return { ...line, mean };
    });
    watch(figure, svg, lines, { x, width, first, last });
  };

  // The step nearest to the pointer, with the values of all runs; arrow keys move it.
  const watch = (figure, svg, lines, { x, width, first, last }) => {
    const steps = [...new Set(lines.flatMap((line) => line.x))].sort((a, b) => a - b);
    let cursor = null, at = steps.length - 1;
    const hide = () => { cursor?.remove(); figure.querySelector(".tip")?.remove(); cursor = null; };
    const show = (place) => {
      hide();
      at = Math.min(Math.max(place, 0), steps.length - 1);
      const step = steps[at], left = x(step);
      cursor = element("line", { class: "cursor", x1: left, x2: left, y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom }, svg);
      const tip = document.createElement("div");
      tip.className = "tip";
      tip.append(`step ${step.toLocaleString("en")}`);
      for (const line of lines) {
        const index = line.x.indexOf(step);
        if (index < 0) continue;
        const row = tip.appendChild(document.createElement("div")), swatch = document.createElement("span"), value = document.createElement("b");
        swatch.className = `swatch b${line.run % 6}`;
        value.textContent = line.mean[index] !== line.y[index] ? `${format(line.y[index])} (mean ${format(line.mean[index])})` : format(line.y[index]);
        if (line.chance?.[index] != null) value.textContent += `, chance ${format(line.chance[index])}`;
        row.append(swatch, runs[line.run], value);
      }
      figure.append(tip);
      const room = figure.clientWidth - tip.offsetWidth - 4, beside = left > width / 2 ? left - tip.offsetWidth - 4 : left + 24;
      tip.style.left = `${Math.max(4, Math.min(beside, room))}px`;
      tip.style.top = "34px";
    };
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect(), scale = width / box.width;
      const step = first + (((event.clientX - box.left) * scale - MARGIN.left) / (width - MARGIN.left - MARGIN.right)) * (last - first);
      show(steps.reduce((best, one, place) => (Math.abs(one - step) < Math.abs(steps[best] - step) ? place : best), 0));
    });
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("blur", hide);
    svg.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!move) return;
      event.preventDefault();
      show(cursor ? at + move : at);
    });
  };

  const figures = [...document.querySelectorAll("figure[data-panel]")];
  const redraw = () => figures.forEach(draw);
  const slider = document.getElementById("smooth");
  const readSlider = () => {
    state.smooth = Number(slider.value);
    document.getElementById("smooth-value").textContent = state.smooth.toFixed(2);
  };
  slider.addEventListener("input", () => { readSlider(); redraw(); });
  const scale = document.getElementById("log");
  scale.addEventListener("change", () => { state.log = scale.checked; redraw(); });
  for (const button of document.querySelectorAll("button[data-run]"))
    button.addEventListener("click", () => {
      const run = Number(button.dataset.run), hidden = state.hidden.delete(run);
      if (!hidden) state.hidden.add(run);
      button.setAttribute("aria-pressed", String(hidden));
      redraw();
    });
  let drawn = 0; // a change of width only: what is drawn changes no width
  new ResizeObserver(() => {
    const width = document.documentElement.clientWidth;
    if (width !== drawn) { drawn = width; redraw(); }
  }).observe(document.documentElement);
  // a browser may keep what was set before the page was loaded again
  readSlider();
  state.log = scale.checked;
  redraw();
})();
