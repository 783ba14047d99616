// Line and bar charts as SVG. Series differ by dash as well as by colour.

const DASHES = ['', '7 3', '2 3', '9 3 2 3', '12 4', '4 2', '1 3'];
const STREAMS = ['k0', 'k2', 'k3', 'k4', 'k1', 'accent'];
/** A stream's colour and dash: RGB and FLOW have their own, others by their place. */
const streamInk = (name, index) => (name === 'rgb' || name === 'flow' ? name : STREAMS[index % STREAMS.length]);
const streamDash = (index) => DASHES[index % DASHES.length];
const SERIES = ['var(--accent)', 'var(--rgb)', 'var(--k0)', 'var(--k2)', 'var(--k4)', 'var(--k3)', 'var(--soft)'];

/** Round tick values that cover a range. */
function ticks(low, high, count = 5) {
  const rough = (high - low || 1) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const found = [];
  for (let value = Math.ceil(low / step - 1e-9) * step; value <= high + step * 1e-9; value += step) found.push(Number(value.toPrecision(12)));
  return found;
}

/** Axes; gives the figure, its drawing and the scales. */
function axes({ width = 480, height = 260, x, y, xTitle, yTitle, xText = short, yText = short, xTicks, label }) {
  const left = 44, right = 10, top = yTitle ? 24 : 12, bottom = xTitle ? 40 : 24;
  const X = (value) => left + ((value - x[0]) / (x[1] - x[0] || 1)) * (width - left - right);
  const Y = (value) => height - bottom - ((value - y[0]) / (y[1] - y[0] || 1)) * (height - top - bottom);
  const svg = h('svg', { viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': label ?? `${yTitle ?? ''} over ${xTitle ?? ''}` });
  for (const tick of ticks(...y)) {
    svg.append(h('line', { class: 'gridline', x1: left, x2: width - right, y1: Y(tick), y2: Y(tick) }),
      h('text', { x: left - 6, y: Y(tick) + 4, 'text-anchor': 'end' }, yText(tick)));
  }
  for (const tick of xTicks ?? ticks(...x)) svg.append(h('text', { x: X(tick), y: height - bottom + 18, 'text-anchor': 'middle' }, xText(tick)));
  svg.append(h('line', { class: 'axis', x1: left, x2: width - right, y1: Y(y[0]), y2: Y(y[0]) }));
  if (xTitle) svg.append(h('text', { x: (left + width - right) / 2, y: height - 6, 'text-anchor': 'middle' }, xTitle));
  if (yTitle) svg.append(h('text', { x: 0, y: 10, 'text-anchor': 'start' }, yTitle));
  return { svg, X, Y, left, right: width - right, top, bottom: height - bottom };
}

/** Lines; a series is {name, points: [[x, y, text, deviation], ...], width, colour, dash, marks}, broken where a y is null. */
function lines(series, options) {
  const all = series.flatMap((one) => one.points.filter((p) => p[1] !== null));
  const x = options.x ?? [Math.min(...all.map((p) => p[0])), Math.max(...all.map((p) => p[0]))];
  const y = options.y ?? around(all.map((p) => p[1]));
  const chart = axes({ ...options, x, y });
  series.forEach((one, index) => {
    const style = { stroke: one.colour ?? SERIES[index % SERIES.length], strokeWidth: one.width ?? 1.7, strokeDasharray: one.dash ?? DASHES[index % DASHES.length],
      opacity: one.opacity ?? 1 };
    chart.svg.append(h('path', { class: 'curve', d: path(one, chart), style }, h('title', {}, one.name ?? '')));
    for (const point of one.points.filter((p, n) => p[1] !== null && (one.marks || isAlone(one.points, n)))) {
      const [x, y, text, deviation] = point, at = chart.X(x);
      chart.svg.append(h('circle', { cx: at, cy: chart.Y(y), r: 3.5, style: { fill: style.stroke } },
        h('title', {}, `${one.name ? `${one.name}: ` : ''}${short(x)}, ${text ?? short(y)}`)));
      if (deviation) chart.svg.append(h('path', { class: 'curve', style: { stroke: style.stroke },
        d: `M${at - 4} ${chart.Y(y - deviation)}h8m-4 0V${chart.Y(y + deviation)}m-4 0h8` }));
    }
  });
  return chart.svg;
}

/** Whether no line leads to a point from either side. */
const isAlone = (points, index) => [points[index - 1], points[index + 1]].every((point) => (point?.[1] ?? null) === null);

function around(values) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  if (low >= 0 && low < 0.4 * high) return [0, high * 1.05];
  const margin = (high - low || Math.abs(high) || 1) * 0.08;
  return [low - margin, high + margin];
}

function path(one, chart) {
  let text = '', before = false;
  for (const point of one.points) {
    if (point[1] === null) { before = false; continue; }
    text += `${before ? 'L' : 'M'}${chart.X(point[0]).toFixed(1)} ${chart.Y(point[1]).toFixed(1)}`;
    before = true;
  }
  return text;
}

/** What the lines are. */
function key(series) {
  return h('figcaption', {}, series.map((one, index) => h('span', { class: 'key' },
    h('svg', { viewBox: '0 0 26 8', 'aria-hidden': 'true' }, h('path', { class: 'curve', d: 'M0 4H26',
      style: { stroke: one.colour ?? SERIES[index % SERIES.length], strokeDasharray: one.dash ?? DASHES[index % DASHES.length], strokeWidth: 2 } })), one.name)));
}

/** Stacked columns of kinds, as shares; a column is {name, under, counts} with a count a kind, the kinds in KINDS' order. */
function stacks(columns, { height = 250, label, width = 480 } = {}) {
  const chart = axes({ width, height, x: [0, columns.length], y: [0, 1], yText: (v) => `${Math.round(100 * v)} %`, xTicks: [], label });
  const room = (chart.right - chart.left) / columns.length;
  columns.forEach((column, index) => {
    const total = sum(column.counts);
    let below = 0;
    column.counts.forEach((count, which) => {
      if (!count) return;
      const [y1, y2] = [chart.Y((below + count) / total), chart.Y(below / total)];
      const box = { x: chart.left + room * (index + 0.14), y: y1, width: room * 0.72, height: Math.max(0, y2 - y1 - 1) };
      chart.svg.append(h('rect', { ...box, class: `k${which}`, rx: 2, ...tipped(`${KINDS[which]}: ${thousands(count)} (${percent(count / total)} %)`) }));
      if (box.height > 13) chart.svg.append(h('text', { class: 'onbar', x: box.x + box.width / 2, y: (y1 + y2) / 2 + 3, 'text-anchor': 'middle',
        'pointer-events': 'none' }, LETTERS[which]));
      below += count;
    });
    const middle = chart.left + room * (index + 0.5);
    chart.svg.append(h('text', { class: 'strong', x: middle, y: height - 9, 'text-anchor': 'middle' }, column.name));
    if (column.under) chart.svg.append(h('text', { x: middle, y: height + 6, 'text-anchor': 'middle' }, column.under));
  });
  return chart.svg;
}

/** Horizontal bars; a bar is {name, value, text, kind}; the longest possible one is `most`. */
function bars(rows, label, most = Math.max(...rows.map((row) => row.value), 1e-9)) {
  return h('table', { 'aria-label': label }, h('tbody', {}, rows.map((row) => h('tr', {},
    h('th', { scope: 'row', style: { fontWeight: 'inherit' } }, row.name),
    h('td', { class: 'bar left', style: { width: '55%' } }, row.value > 0 && h('span', { class: row.kind ? `kinded ${row.kind}` : null, style: { width: `${(100 * row.value) / most}%` } })),
    h('td', {}, row.text)))));
}
