// The views as tabs, the keyboard, light and dark.

const VIEWS = [
  ['overview', 'Overview', overviewView, Boolean(data.overview)],
  ['classes', 'Classes', classesView, Boolean(data.classes)],
  ['errors', 'Errors', errorsView, Boolean(data.errors)],
  ['videos', 'Videos', videosView, Boolean(data.videos)],
  ['units', 'Action units', unitsView, Boolean(data.units?.length)],
  ['sweep', 'Runs', sweepView, Boolean(data.sweep)],
  ['training', 'Training', trainingView, Boolean(data.training)],
].filter((view) => view[3]);
const main = document.getElementById('main'), tabs = document.querySelector('.tabs'), built = new Map();
let current = null;

/** Where the reader is, in the address; a page inside MLflow's has no address of its own. */
function remember(place) {
  try { history.replaceState(null, '', `#${place}`); } catch { /* the page still works without */ }
}

function openTab(id) {
  const view = VIEWS.find((one) => one[0] === id) ?? VIEWS[0];
  if (!built.has(view[0])) {
    const panel = h('div', { role: 'tabpanel', id: `panel-${view[0]}`, 'aria-labelledby': `tab-${view[0]}` }, view[2]());
    built.set(view[0], panel);
    main.append(panel);
  }
  for (const [name, panel] of built) panel.hidden = name !== view[0];
  for (const tab of tabs.children) {
    tab.setAttribute('aria-selected', String(tab.id === `tab-${view[0]}`));
    tab.tabIndex = tab.id === `tab-${view[0]}` ? 0 : -1;
  }
  const before = current;
  current = view[0];
  if (before !== current) {
    remember(current);
    scrollTo(0, 0);
    if (current === 'videos') videosApi.refresh();
  }
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  change({ theme });
  player?.draw();
}

const KEYS = [
  ['1 … 7', 'a view'], ['/', 'search'], ['j  k', 'next, previous video'], ['←  →', 'a snippet back, on; with Shift ten'], ['+  −  0', 'zoom in, out, whole video'],
  ['c  C', 'CAS of the next, previous class'], ['a', 'all detections of a video, or the best'], ['[  ]', 'lower, higher tIoU threshold'], ['t', 'light or dark'], ['?', 'these keys'],
];

function press(event) {
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
  if (event.key === 'Escape' && typing) event.target.blur();
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const watching = current === 'videos' && player;
  const step = () => player.snippet_s * (event.shiftKey ? 10 : 1);
  const actions = {
    '/': () => document.querySelector('[role="tabpanel"]:not([hidden]) input[type="search"]')?.focus(),
    '?': () => document.getElementById('keys').showModal(),
    t: () => setTheme(state.theme === 'dark' ? 'light' : 'dark'),
    '[': () => setTiou(state.t - 1), ']': () => setTiou(state.t + 1),
    j: () => current === 'videos' && videosApi.move(1), k: () => current === 'videos' && videosApi.move(-1),
    ArrowLeft: () => watching && player.seek(player.time() - step()), ArrowRight: () => watching && player.seek(player.time() + step()),
    '+': () => watching && player.zoom(0.5), '=': () => watching && player.zoom(0.5), '-': () => watching && player.zoom(2), 0: () => watching && player.zoom(1e9),
    c: () => watching && player.nextClass(1), C: () => watching && player.nextClass(-1), a: () => watching && player.toggleAll(),
  };
  const number = Number(event.key);
  if (number >= 1 && number <= VIEWS.length) openTab(VIEWS[number - 1][0]);
  else if (actions[event.key]) actions[event.key]();
  else return;
  event.preventDefault();
}

function setTiou(t) {
  const select = document.getElementById('tiou');
  const next = Math.min(select.options.length - 1, Math.max(0, t));
  select.value = next;
  if (next !== state.t) change({ t: next });
}

function start() {
  VIEWS.forEach(([id, name], index) => tabs.append(h('button', { type: 'button', role: 'tab', id: `tab-${id}`, 'aria-controls': `panel-${id}`, title: `${name} (${index + 1})`,
    onclick: () => openTab(id), onkeydown: (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      event.stopPropagation();
      openTab(VIEWS[(index + step + VIEWS.length) % VIEWS.length][0]);
      tabs.querySelector('[aria-selected="true"]').focus();
    } }, name)));
  const keys = document.getElementById('keys');
  keys.append(h('h2', {}, 'Keyboard'), h('dl', {}, KEYS.map(([names, does]) => [h('dt', {}, names.split('  ').map((name) => [h('kbd', {}, name), ' '])), h('dd', {}, does)])),
    h('p', {}, h('button', { type: 'button', onclick: () => keys.close() }, 'Close')));
  document.getElementById('help').addEventListener('click', () => keys.showModal());
  document.getElementById('theme').addEventListener('click', () => setTheme(state.theme === 'dark' ? 'light' : 'dark'));
  document.addEventListener('keydown', press);
  if (data.overview) {
    const select = document.getElementById('tiou');
    select.append(...data.overview.tious.map((tiou, index) => h('option', { value: index }, tiou)));
    state.t = Math.max(0, data.overview.tious.indexOf(0.5));
    select.value = state.t;
    select.addEventListener('change', () => setTiou(Number(select.value)));
    select.parentElement.hidden = false;
  }
  const dark = matchMedia('(prefers-color-scheme: dark)');
  dark.addEventListener('change', () => setTheme(dark.matches ? 'dark' : 'light'));
  setTheme(dark.matches ? 'dark' : 'light');
  addEventListener('resize', () => current === 'videos' && player?.draw());
  const [tab, video] = location.hash.slice(1).split('/');
  openTab(tab || VIEWS[0][0]);
  const wanted = video && data.videos ? data.videos.ids.indexOf(decodeURIComponent(video)) : -1;
  if (wanted >= 0) videosApi.pick(wanted);
}

start();
document.documentElement.dataset.ready = 'yes';
