// What scripts add to pages that work without them: livelier charts, a form that is sent once, a list that can
// be paused. They read what the page shows, and know nothing else.
"use strict";

(() => {
  const MICROS = 1e6;

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // The figures of a chart are those of its table; a picture needs no more than a float has.
  const read = (figure) => {
    const rows = [...figure.querySelectorAll("tr[data-at]")];
    const unit = figure.dataset.kind === "money" ? MICROS : 1;
    return {
      rows,
      at: rows.map((row) => Number(row.dataset.at)),
      values: rows.map((row) => Number(row.dataset.value) / unit),
    };
  };

  const compact = (figure, empty) => {
    const format = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
    const whole = figure.dataset.kind === "count" || empty;
    return (_, ticks) => ticks.map((tick) => (whole && (tick % 1 || (empty && tick)) ? "" : format.format(tick)));
  };

  const when = (figure) => {
    const parts = { hour: { hour: "2-digit", minute: "2-digit", hourCycle: "h23" }, day: { day: "numeric", month: "short" }, month: { month: "short" } };
    const format = new Intl.DateTimeFormat("en-GB", { ...parts[figure.dataset.step], timeZone: figure.dataset.zone });
    return (seconds) => format.format(new Date(seconds * 1000));
  };

  const draw = (figure) => {
    const place = figure.querySelector(".plot");
    const readout = figure.querySelector(".readout");
    const { rows, at, values } = read(figure);
    if (!rows.length || !window.uPlot) {
      return;
    }
    // Steps stand side by side by their number: months are not of one length.
    const xs = at.map((_, index) => index);
    const label = when(figure);
    const font = `11px ${getComputedStyle(document.body).fontFamily}`;
    const axis = { stroke: () => colour("--ink-3"), font, ticks: { show: false } };
    const tell = (plot) => {
      const row = plot.cursor.idx == null ? null : rows[plot.cursor.idx];
      readout.replaceChildren(...(row ? [...row.cells].flatMap((cell) => [...[...cell.childNodes].map((node) => node.cloneNode(true)), document.createTextNode("  ")]) : []));
    };
    // Nothing at all is drawn as a line at zero.
    const reach = (_, low, high) => (low || high ? [Math.min(0, low * 1.1), Math.max(0, high * 1.08)] : [0, 1]);
    const room = (_, labels) => 14 + 7 * Math.max(1, ...(labels || []).map((one) => one.length));
    const size = () => ({ width: place.clientWidth, height: place.clientHeight });
    const plot = new uPlot(
      {
        ...size(),
        legend: { show: false },
        cursor: { y: false, drag: { x: false, y: false }, points: { show: false } },
        padding: [8, 4, 0, 0],
        scales: { x: { time: false, range: [-0.5, xs.length - 0.5] }, y: { range: reach } },
        axes: [
          { ...axis, grid: { show: false }, space: 56, size: 24, gap: 6, incrs: [1, 2, 3, 4, 5, 6, 7, 10, 14, 24, 30].filter((one) => one < Math.max(2, xs.length)), values: (_, ticks) => ticks.map((tick) => (Number.isInteger(tick) && at[tick] != null ? label(at[tick]) : "")) },
          { ...axis, grid: { stroke: () => colour("--line-2"), width: 1 }, size: room, gap: 6, space: 36, values: compact(figure, values.every((one) => one === 0)) },
        ],
        series: [{}, { fill: () => colour("--bar"), stroke: () => colour("--bar"), width: 0, points: { show: false }, paths: uPlot.paths.bars({ size: [0.72, 44], radius: 0.12 }) }],
        hooks: { setCursor: [tell] },
      },
      [xs, values],
      (_, begin) => {
        place.querySelector("svg").remove();
        place.append(_.root);
        begin();
      },
    );
    new ResizeObserver(() => plot.setSize(size())).observe(place);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plot.redraw());
  };

  const sendOnce = (form) => {
    // The server pays once whatever is sent; this only spares a second question.
    form.addEventListener("submit", () => setTimeout(() => form.querySelector("button").setAttribute("disabled", "")));
    addEventListener("pageshow", () => form.querySelector("button").removeAttribute("disabled"));
  };

  const pausable = (button) => {
    let paused = false;
    button.hidden = false;
    button.addEventListener("click", () => {
      paused = !paused;
      button.setAttribute("aria-pressed", String(paused));
      button.textContent = paused ? "Go on" : "Pause";
    });
    document.body.addEventListener("htmx:beforeRequest", (event) => {
      // Nor is anything asked for while nobody looks, or while a link of the list has the focus.
      const mine = button.closest("section").contains(event.detail.elt);
      if ((paused && mine) || document.hidden || event.detail.elt.contains(document.activeElement)) {
        event.preventDefault();
      }
    });
  };

  document.addEventListener("DOMContentLoaded", () => {
    for (const field of document.querySelectorAll("[data-time-zone]")) {
      field.value = Intl.DateTimeFormat().resolvedOptions().timeZone || "UTC";
    }
    document.querySelectorAll("[data-chart]").forEach(draw);
    document.querySelectorAll("form[data-once]").forEach(sendOnce);
    document.querySelectorAll("[data-pause]").forEach(pausable);
  });
})();
