// What every view uses: the contents, elements made from text, the choices a reader has made.

const data = JSON.parse(document.getElementById('contents').textContent);
const KINDS = ['true positive', 'double detection', 'wrong label', 'localization', 'confusion', 'background', 'missed'];
const LETTERS = ['✓', 'D', 'W', 'L', 'C', 'B', 'M'];
const MEANINGS = [
  'takes an instance of its class: tIoU at least the threshold, and no better detection took it before',
  'well placed on an instance of its class that another detection has taken',
  'well placed, but on an instance of another class',
  'on an instance of its class, tIoU at least 0.1 but below the threshold',
  'on an instance of another class, tIoU at least 0.1 but below the threshold',
  'tIoU below 0.1 with every instance',
  'an instance that no detection takes',
];

/** An element. Whatever is not an element becomes text, so no name of a video or class is ever read as HTML. */
function h(tag, attributes = {}, ...children) {
  const svg = ['svg', 'path', 'line', 'rect', 'text', 'g', 'circle', 'title', 'polygon'].includes(tag);
  const element = svg ? document.createElementNS('http://www.w3.org/2000/svg', tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (name === 'style') Object.assign(element.style, value);
    else if (value === true) element.setAttribute(name, '');
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** A card of the grid, so many of its twelve columns wide. */
const card = (width, title, ...children) => h('section', { class: `card w${width}` }, title && h('h2', {}, title), ...children);
const scroll = (...children) => h('div', { class: 'scroll' }, ...children);
const soft = (...children) => h('p', { class: 'soft' }, ...children);
const heads = (titles, attributes = () => ({})) => titles.map((title, index) => h('th', { scope: 'col', ...attributes(index) }, title));
const percent = (fraction, digits = 1) => (100 * fraction).toFixed(digits);
const thousands = (number) => number.toLocaleString('en');
const plural = (count, noun, many = noun + 's') => `${thousands(count)} ${count === 1 ? noun : many}`;
const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);
const mean = (numbers) => (numbers.length ? sum(numbers) / numbers.length : 0);
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

function seconds(time) {
  if (time < 60) return `${time.toFixed(1)} s`;
  return `${Math.floor(time / 60)}:${(time % 60).toFixed(1).padStart(4, '0')}`;
}

function kind(index, text = KINDS[index]) {
  return h('span', { class: 'kind' }, h('i', { class: `k${index}`, 'aria-hidden': 'true' }, LETTERS[index]), text);
}

/** A number for people: three significant digits, no trailing zeros. */
function short(number) {
  if (number === null || number === undefined) return '–';
  if (number === 0) return '0';
  const size = Math.abs(number);
  return size >= 1e5 || size < 1e-3 ? number.toExponential(1) : String(Number(number.toPrecision(3)));
}

/** The reader's choices; views are told when one changes. */
const state = { t: 0, theme: 'light' };
const listeners = [];
const onChange = (listener) => listeners.push(listener);
/** Draw now, and again whenever another tIoU threshold is chosen. */
function onThreshold(draw) {
  draw();
  onChange((changes) => 't' in changes && draw());
}
function change(changes) {
  Object.assign(state, changes);
  for (const listener of listeners) listener(changes);
}

/** Act on a key with what it stands for, and keep it from the rest of the page. */
function onKeys(event, meanings, act) {
  if (!(event.key in meanings)) return;
  event.preventDefault();
  event.stopPropagation();
  act(meanings[event.key]);
}

/** A table; columns are {title, value, cell, left, first} and sort by `value` where they have one. */
function table(columns, rows, { caption, choose, sort = null, descending = true } = {}) {
  const body = h('tbody');
  const heads = columns.map((column, index) => h('th', { scope: 'col', class: column.left ? 'left' : null },
    column.value ? h('button', { type: 'button', onclick: () => order(index) }, column.title) : column.title));
  let by = sort, down = descending, chosen = null;
  function order(index) {
    down = by === index ? !down : !columns[index].first;
    by = index;
    fill();
  }
  function fill() {
    const sorted = by === null ? [...rows] : [...rows].sort((one, other) => {
      const [a, b] = [columns[by].value(one), columns[by].value(other)];
      return (a < b ? -1 : a > b ? 1 : 0) * (down ? -1 : 1);
    });
    heads.forEach((head, index) => head.setAttribute('aria-sort', index !== by ? 'none' : down ? 'descending' : 'ascending'));
    body.replaceChildren(...(rows.length ? sorted.map(line) : [h('tr', {}, h('td', { class: 'soft', colspan: columns.length }, 'none'))]));
  }
  function line(row) {
    const cells = columns.map((column, index) => h(index ? 'td' : 'th', {
      class: column.kind ?? (column.left ? 'left' : null), scope: index ? null : 'row', style: index ? {} : { fontWeight: 'inherit' } },
    column.cell(row)));
    if (!choose) return h('tr', {}, cells);
    return h('tr', {
      tabindex: '0', 'aria-selected': String(row === chosen), onclick: () => pick(row),
      onkeydown: (event) => onKeys(event, { Enter: null, ' ': null, ArrowDown: 'nextElementSibling', ArrowUp: 'previousElementSibling' },
        (step) => (step ? event.currentTarget[step]?.focus() : pick(row))),
    }, cells);
  }
  function pick(row) {
    const focused = body.contains(document.activeElement);
    chosen = row;
    fill();
    if (focused) body.querySelector('[aria-selected="true"]')?.focus();
    choose(row);
  }
  fill();
  const element = h('table', {}, caption ? h('caption', {}, caption) : null, h('thead', {}, h('tr', {}, heads)), body);
  return element;
}

const tip = document.getElementById('tip');
function showTip(event, text) {
  tip.hidden = !text;
  if (!text) return;
  tip.textContent = text;
  tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)}px`;
  tip.style.top = `${Math.min(event.clientY + 16, innerHeight - tip.offsetHeight - 8)}px`;
}
const tipped = (text) => ({ onmousemove: (event) => showTip(event, text), onmouseleave: (event) => showTip(event, null) });
