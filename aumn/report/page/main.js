// The views as tabs, the keyboard, light and dark.

const VIEWS = [
  ['overview', 'Overview', overviewView], ['classes', 'Classes', classesView], ['errors', 'Errors', errorsView], ['videos', 'Videos', videosView],
  ['units', 'Action units', unitsView], ['sweep', 'Runs', sweepView], ['training', 'Training', trainingView],
].filter(([id]) => data[id] && data[id].length !== 0);
const main = document.getElementById('main'), tabs = document.querySelector('.tabs'), built = new Map();
let current = null;

/** Where the reader is, in the address; a page inside MLflow's has no address of its own. */
function remember(place) {
  try { history.replaceState(null, '', `#${place}`); } catch { /* the page still works without */ }
}

function openTab(id) {
  const [name, , view] = VIEWS.find((one) => one[0] === id) ?? VIEWS[0];
  if (!built.has(name)) {
    built.set(name, h('div', { role: 'tabpanel', id: `panel-${name}`, 'aria-labelledby': `tab-${name}` }, view()));
    main.append(built.get(name));
  }
  for (const [other, panel] of built) panel.hidden = other !== name;
  for (const tab of tabs.children) {
    tab.setAttribute('aria-selected', String(tab.id === `tab-${name}`));
    tab.tabIndex = tab.id === `tab-${name}` ? 0 : -1;
  }
  if (name === current) return;
  current = name;
  remember(current);
  scrollTo(0, 0);
  if (current === 'videos') videosApi.refresh();
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  change({ theme });
  player?.draw();
}

const switchTheme = () => setTheme(state.theme === 'dark' ? 'light' : 'dark');

const KEYS = [
  ['1 … 7', 'a view'], ['/', 'search'], ['j  k', 'next, previous video'], ['←  →', 'a snippet back, on; with Shift ten'], ['+  −  0', 'zoom in, out, whole video'],
  ['c  C', 'CAS of the next, previous class'], ['a', 'all detections of a video, or the best'], ...(data.films ? [['p', 'play the video, or pause']] : []), ['[  ]', 'lower, higher tIoU threshold'], ['t', 'light or dark'], ['?', 'these keys'],
];

function press(event) {
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
  if (event.key === 'Escape' && typing) event.target.blur();
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const onVideo = (act) => () => current === 'videos' && player && act(event.shiftKey ? 10 * player.snippet_s : player.snippet_s);
  const actions = {
    '/': () => document.querySelector('[role="tabpanel"]:not([hidden]) input[type="search"]')?.focus(),
    '?': () => document.getElementById('keys').showModal(),
    t: switchTheme,
    '[': () => setTiou(state.t - 1), ']': () => setTiou(state.t + 1),
    j: () => current === 'videos' && videosApi.move(1), k: () => current === 'videos' && videosApi.move(-1),
    ArrowLeft: onVideo((step) => player.seek(player.time() - step)), ArrowRight: onVideo((step) => player.seek(player.time() + step)),
    '+': onVideo(() => player.zoom(0.5)), '=': onVideo(() => player.zoom(0.5)), '-': onVideo(() => player.zoom(2)), 0: onVideo(() => player.zoom(1e9)),
    c: onVideo(() => player.nextClass(1)), C: onVideo(() => player.nextClass(-1)), a: onVideo(() => player.toggleAll()), p: onVideo(() => player.toggleFilm()),
  };
  const view = VIEWS[Number(event.key) - 1];
  if (view) openTab(view[0]);
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
    onclick: () => openTab(id), onkeydown: (event) => onKeys(event, { ArrowRight: 1, ArrowLeft: -1 }, (step) => {
      openTab(VIEWS[(index + step + VIEWS.length) % VIEWS.length][0]);
      tabs.querySelector('[aria-selected="true"]').focus();
    }) }, name)));
  const keys = document.getElementById('keys');
  keys.append(h('h2', {}, 'Keyboard'), h('dl', {}, KEYS.map(([names, does]) => [h('dt', {}, names.split('  ').map((name) => [h('kbd', {}, name), ' '])), h('dd', {}, does)])),
    h('p', {}, h('button', { type: 'button', onclick: () => keys.close() }, 'Close')));
  document.getElementById('help').addEventListener('click', () => keys.showModal());
  document.getElementById('theme').addEventListener('click', switchTheme);
  document.addEventListener('keydown', press);
  if (data.overview) {
    const select = document.getElementById('tiou');
    select.append(...data.overview.tious.map((tiou, index) => h('option', { value: index }, tiou)));
    state.t = Math.max(0, data.overview.tious.indexOf(0.5));
    select.value = state.t;
    select.addEventListener('change', () => setTiou(Number(select.value)));
    select.parentElement.hidden = false;
  }
  const dark = matchMedia('(prefers-color-scheme: dark)'), follow = () => setTheme(dark.matches ? 'dark' : 'light');
  dark.addEventListener('change', follow);
  follow();
  addEventListener('resize', () => current === 'videos' && player?.draw());
  const [tab, video] = location.hash.slice(1).split('/');
  openTab(tab || VIEWS[0][0]);
  const wanted = video && data.videos ? data.videos.ids.indexOf(decodeURIComponent(video)) : -1;
  if (wanted >= 0) videosApi.pick(wanted);
}

start();
document.documentElement.dataset.ready = 'yes';
