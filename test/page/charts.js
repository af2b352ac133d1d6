/*
 * charts.js - the first half of a page's script: helpers, what the numbers mean, and charts. page.c
 * puts it and reader.js into the page, after the data.
 *
 * All text of a run becomes text nodes: nothing of it is read as HTML.
 */
'use strict';

/* ---- helpers --------------------------------------------------------------------------------- */

const byId = id => document.getElementById(id);
/* An element with attributes and children; a child that is no node becomes text. */
function make(tag, attributes = {}, ...children) {
  const svg = ['svg', 'path', 'line', 'text', 'g', 'rect'].includes(tag);
  const e = svg ? document.createElementNS('http://www.w3.org/2000/svg', tag)
                : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes))
    if (name.startsWith('on')) e.addEventListener(name.slice(2), value);
    else if (value != null && value !== false) e.setAttribute(name, value === true ? '' : value);
  e.append(...children.flat(9).filter(c => c != null).map(c => c instanceof Node ? c : String(c)));
  return e;
}
/* Text with control characters made visible: U+241B for an escape, and codes for characters that
   change the direction of other text. */
const visible = text => text
  .replace(/[\u0000-\u0008\u000b-\u001f]/g, c => String.fromCharCode(0x2400 + c.charCodeAt(0)))
  .replace(/\u007f/g, '\u2421')
  .replace(/[\u0080-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g,
           c => `\u27e8U+${c.charCodeAt(0).toString(16).toUpperCase().padStart(4, '0')}\u27e9`);
const minus = text => String(text).replace(/^-/, '\u2212');
/* A number for reading, four significant digits; and as it is in the dump. */
function short(x) {
  if (x == null || !isFinite(x)) return '\u2013';
  if (x === 0 || (Math.abs(x) >= 1e-3 && Math.abs(x) < 1e5))
    return minus(String(Number(x.toPrecision(4))));
  return minus(x.toExponential(2));
}
const exact = x => x == null ? '\u2013' : minus(x);
const sum = x => x.reduce((a, b) => a + (b ?? 0), 0);
const quantile = (sorted, q) => {
  const at = (sorted.length - 1) * q, i = Math.floor(at);
  return sorted[i] + span(sorted[i], sorted[Math.min(i + 1, sorted.length - 1)]) * (at - i);
};
/* The smallest and the largest of many numbers, more than a call can have arguments. */
const smallest = x => x.reduce((a, b) => Math.min(a, b), Infinity);
const largest = x => x.reduce((a, b) => Math.max(a, b), -Infinity);
const by = f => (a, b) => f(a) - f(b);
const plural = (n, noun) => `${n.toLocaleString('en')} ${noun}${n === 1 ? '' : 's'}`;

const data = JSON.parse(byId('data').textContent);
/* The lines of dumps are in scripts of ten each. A script is parsed when it is needed. */
const chunks = new Map();
function lineOf(file, row) {
  const id = `${file.id}-${Math.floor(row / file.chunk)}`;
  if (!chunks.has(id)) chunks.set(id, JSON.parse(byId(id).textContent));
  return chunks.get(id)[row % file.chunk];
}

/* ---- what the numbers mean ------------------------------------------------------------------- */

/* A quantity of a token. get: its number for token i of a block, or null. scale: "both" around
   centre, "up" from 0, "share" from 0 to 1. fn and file: where it is computed. */
const QUANTITIES = {
  rollouts: [
    {key: 'reward', name: 'reward', symbol: 'r', unit: 'reward', scale: 'both',
     formula: 'r\u209c = \u2212\u03b2 kl\u209c + [t = T] score', fn: 'rewards', file: 'ppo.c',
     say: 'What the token earns: a penalty for leaving the reference, and at the last token the ' +
          'score of the answer. Whitened if --whiten_rewards was given.'},
    {key: 'kl', name: 'KL, exact', symbol: 'KL', unit: 'nats', scale: 'up',
     formula: '\u03a3\u1d65 \u03c0_old(v) (log \u03c0_old(v) \u2212 log \u03c0_ref(v))',
     fn: 'gpt2_kl', file: 'common/model/gpt2.c',
     say: 'How far the policy is from the reference at this place, over the whole vocabulary.'},
    {key: 'k1', name: 'KL, sampled', symbol: 'k1', unit: 'nats', scale: 'both',
     formula: 'log \u03c0_old(y\u209c) \u2212 log \u03c0_ref(y\u209c)', fn: 'kl_estimate',
     file: 'ppo.c', get: (b, i) => b.at('logp', i) - b.at('ref_logp', i),
     say: 'The same from this one token. Positive: the policy likes the token more than the ' +
          'reference does.'},
    {key: 'value', name: 'value', symbol: 'V', unit: 'reward', scale: 'both', formula: 'V\u209c',
     fn: 'reference_and_values', file: 'ppo.c',
     say: 'The reward that the critic expects from here to the end, before it sees the token.'},
    {key: 'advantage', name: 'advantage', symbol: 'A', unit: 'reward', scale: 'both',
     formula: 'A\u209c = \u03b4\u209c + \u03b3\u03bb A\u209c\u208a\u2081,  ' +
              '\u03b4\u209c = r\u209c + \u03b3 V\u209c\u208a\u2081 \u2212 V\u209c',
     fn: 'gae', file: 'ppo.c',
     say: 'How much better the token was than expected. The policy learns from it. Divided by ' +
          'the standard deviation of its batch, unless --whiten_advantages says otherwise.'},
    {key: 'return', name: 'return', symbol: 'R', unit: 'reward', scale: 'both',
     formula: 'R\u209c = A\u209c + V\u209c', fn: 'gae', file: 'ppo.c',
     say: 'What the critic should have expected.'},
    {key: 'ratio', name: 'ratio', symbol: '\u03c1', unit: '', scale: 'both', centre: 1,
     formula: '\u03c1\u209c = \u03c0(y\u209c) / \u03c0_old(y\u209c)', fn: 'surrogate',
     file: 'ppo.c',
     say: 'How much more probable the updates have made the token, when the last epoch of the ' +
          'iteration reached it. 1 in the first minibatch.'},
    {key: 'p', name: 'probability', symbol: '\u03c0_old', unit: '', scale: 'share',
     formula: '\u03c0_old(y\u209c) = exp(log \u03c0_old(y\u209c))', fn: 'gpt2_logprob',
     file: 'common/model/gpt2.c', get: (b, i) => Math.exp(b.at('logp', i)),
     say: 'The probability with which the policy chose the token.'}],
  tokens: [
    {key: 'gain', name: 'gain', symbol: '', unit: 'nats', scale: 'both',
     formula: 'loss before \u2212 loss after', fn: 'cross_entropy', file: 'common/model/loss.c',
     get: (b, i) => b.first && b.first.loss[i] != null && b.src.loss[i] != null
                      ? b.first.loss[i] - b.src.loss[i] : null,
     say: 'How much better the token is predicted after training.'},
    {key: 'loss', name: 'loss, after', symbol: '', unit: 'nats', scale: 'up',
     formula: '\u2212log p(y\u209c | x, y\u2081 \u2026 y\u209c\u208b\u2081)', fn: 'cross_entropy',
     file: 'common/model/loss.c',
     say: 'The loss of the token after training. 0: it was certain.'},
    {key: 'before', name: 'loss, before', symbol: '', unit: 'nats', scale: 'up',
     formula: '\u2212log p(y\u209c | x, y\u2081 \u2026 y\u209c\u208b\u2081)', fn: 'cross_entropy',
     file: 'common/model/loss.c', get: (b, i) => b.first ? b.first.loss[i] : null,
     say: 'The same before training.'},
    {key: 'p', name: 'probability, after', symbol: 'p', unit: '', scale: 'share',
     formula: 'exp(\u2212loss)', fn: 'gpt2_logprob', file: 'common/model/gpt2.c',
     get: (b, i) => b.src.loss[i] == null ? null : Math.exp(-b.src.loss[i]),
     say: 'The probability of the token after training.'}],
  pairs: [
    {key: 'value', name: 'running value', symbol: 'r', unit: 'reward', scale: 'both',
     formula: 'r(x, y\u2081 \u2026 y\u209c) = w \u00b7 ln_f(h\u209c)', fn: 'batch_rewards',
     file: 'reward.c', say: 'The reward if the answer ended here. The last one is its score.'},
    {key: 'change', name: 'change', symbol: '', unit: 'reward', scale: 'both',
     formula: 'r\u209c \u2212 r\u209c\u208b\u2081', fn: 'batch_rewards', file: 'reward.c',
     get: (b, i) => i ? b.at('value', i) - b.at('value', i - 1) : null,
     say: 'What the token added to the reward.'},
    {key: 'earlier', name: 'running value, before', symbol: '', unit: 'reward', scale: 'both',
     formula: 'w \u00b7 ln_f(h\u209c)', fn: 'batch_rewards', file: 'reward.c',
     get: (b, i) => b.first ? b.first.value[i] : null, say: 'The same before training.'}],
  dialogues: [], labels: [],
};

/* Panels of curves: title, unit, factor, [key, label] of each line, and where it is computed. */
const PANELS = {
  supervised: [
    {title: 'Loss', unit: 'nats per scored token', fn: 'cross_entropy',
     file: 'common/model/loss.c', keys: [['loss', 'training'], ['eval_loss', 'held-out']]},
    {title: 'Tokens predicted right', unit: '%', factor: 100, fn: 'task_watch',
     file: 'common/run/task.c',
     keys: [['mean_token_accuracy', 'training'], ['eval_mean_token_accuracy', 'held-out']]}],
  reward: [
    {title: 'Loss', unit: 'nats per pair', fn: 'bradley_terry', file: 'reward.c',
     keys: [['loss', 'training'], ['eval_loss', 'held-out']]},
    {title: 'Chosen has the higher reward', unit: '% of pairs', factor: 100, fn: 'is_correct',
     file: 'reward.c', keys: [['accuracy', 'training'], ['eval_accuracy', 'held-out']]},
    {title: 'Margin', unit: 'reward of chosen less that of rejected', fn: 'margin',
     file: 'reward.c', keys: [['margin', 'training'], ['eval_margin', 'held-out']]},
    {title: 'Mean reward in training', unit: 'reward', fn: 'watch_pairs', file: 'reward.c',
     keys: [['rewards/chosen', 'chosen'], ['rewards/rejected', 'rejected']]}],
  ppo: [
    {title: 'Reward of an answer', unit: 'score of the judge', fn: 'figures_measure',
     file: 'common/rl/figures.c',
     keys: [['objective/raw_scores', 'training'], ['eval/reward', 'held-out']]},
    {title: 'KL from the reference', unit: 'nats per answer', fn: 'figures_measure',
     file: 'common/rl/figures.c',
     keys: [['objective/kl_exact', 'training'], ['eval/kl_exact', 'held-out']],
     instead: [['objective/kl_k1', 'training, sampled'], ['eval/kl', 'held-out, sampled']]},
    {title: 'Entropy of the policy', unit: 'nats per token', fn: 'minibatch', file: 'ppo.c',
     keys: [['policy/entropy_avg', 'training']]},
    {title: 'Tokens whose ratio is clipped', unit: '%', factor: 100, fn: 'surrogate',
     file: 'ppo.c', keys: [['policy/clipfrac_avg', 'training']]}],
  constitutional: [
    {title: 'Loss on the revisions', unit: 'nats per scored token', fn: 'cross_entropy',
     file: 'common/model/loss.c', keys: [['loss', 'training']]},
    {title: 'Held-out answers', unit: '%', factor: 100, fn: 'dialogues_conduct',
     file: 'common/rl/dialogues.c',
     keys: [['eval_breaches', 'break the principles'], ['eval_criticised', 'are criticised']]}],
};
const given = (line, key) => Object.hasOwn(line, key) && line[key] != null;
const has = (run, key) => run.log.some(line => given(line, key));
const kindOf = run => has(run, 'objective/raw_scores') ? 'ppo' : has(run, 'rewards/chosen')
  ? 'reward' : has(run, 'revised') ? 'constitutional' : has(run, 'loss') ? 'supervised' : null;

/* ---- charts ---------------------------------------------------------------------------------- */

/* Charts that are not in the page yet, and so have no width: fitCharts draws them when they are. */
const unfitted = [];
function fitCharts() {
  for (const fit of unfitted.splice(0)) fit();
}
const DASHES = ['', '5 3', '1 3', '8 3 2 3'];
/* b - a, which does not overflow. */
const span = (a, b) => Math.max(-Number.MAX_VALUE, Math.min(Number.MAX_VALUE, b - a));
/* About n round numbers between low and high. */
function ticks(low, high, n) {
  const rough = high / n - low / n || 1, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find(m => m * power >= rough * .999), all = [];
  const first = Math.ceil(low / step - 1e-9);
  if (!Number.isSafeInteger(first)) return [low, high];  // no rounder numbers between them
  for (let i = first; i * step <= high + step * 1e-9; i++) all.push(i * step);
  return all;
}
/* Draws series {label, points [[x, y]], band [[x, low, high]], colour, dash, bars} into a figure,
   and again when its width changes. The arrow keys and the pointer read values. */
function chart(title, unit, xName, series, caption) {
  const readout = make('div', {class: 'legend', 'aria-live': 'off'});
  const holder = make('div');
  const xs = [...new Set(series.flatMap(s => s.points.map(p => p[0])))].sort((a, b) => a - b);
  let at = -1, width = 0;
  const value = (s, x) => s.points.find(p => p[0] === x)?.[1];
  function legend() {
    const swatch = s => make('svg', {viewBox: '0 0 26 10', 'aria-hidden': 'true'},
      make('path', {d: 'M0 5H26', style: `stroke: ${s.colour}`, 'stroke-dasharray': s.dash}));
    readout.replaceChildren(
      at < 0 ? '' : make('span', {}, `${xName} ${short(xs[at])}`),
      ...series.map(s => make('span', {}, swatch(s), ' ', visible(s.label),
        at < 0 || value(s, xs[at]) == null ? '' : ` ${short(value(s, xs[at]))}`)));
  }
  function draw() {
    const W = width, H = 200, left = 46, right = 8, top = 8, bottom = 36;
    const ys = series.flatMap(s => [...s.points.map(p => p[1]),
                                    ...(s.band ?? []).flatMap(b => [b[1], b[2]])]);
    let low = smallest(ys), high = largest(ys), x0 = xs[0], x1 = xs[xs.length - 1];
    const half = (series.find(s => s.bars)?.bars ?? 0) / 2;  // of a bar
    if (half) [low, x0, x1] = [Math.min(0, low), x0 - half, x1 + half];
    if (low === high) {
      const around = (Math.abs(low) || 1) / 2;
      [low, high] = [low - around, high + around];
    }
    const marks = ticks(low, high, 4);
    low = Math.min(low, marks[0]);
    high = Math.max(high, marks[marks.length - 1]);
    if (x0 === x1) [x0, x1] = [x0 - 1, x1 + 1];
    const X = x => left + span(x0, x) / span(x0, x1) * (W - left - right);
    const Y = y => top + span(y, high) / span(low, high) * (H - top - bottom);
    const path = points => points.map((p, i) => `${i ? 'L' : 'M'}${X(p[0]).toFixed(1)} ` +
                                                Y(p[1]).toFixed(1)).join('');
    const svg = make('svg', {viewBox: `0 0 ${W} ${H}`, height: H, role: 'img', tabindex: 0,
      'aria-label': `${title}, ${unit}. ` + series.filter(s => s.points.length).map(s =>
        `${s.label}: ${short(s.points[0][1])} at ${xName} ${short(s.points[0][0])}, ` +
        `${short(s.points[s.points.length - 1][1])} at ${short(s.points[s.points.length - 1][0])}`)
        .join('; ') + '. Arrow keys read values.'});
    for (const y of marks)
      svg.append(make('line', {class: 'grid', x1: left, x2: W - right, y1: Y(y), y2: Y(y)}),
                 make('text', {x: left - 6, y: Y(y) + 4, 'text-anchor': 'end'}, short(y)));
    for (const x of ticks(x0, x1, W < 360 ? 4 : 6))
      svg.append(make('text', {x: X(x), y: H - bottom + 16, 'text-anchor': 'middle'}, short(x)));
    svg.append(make('text', {x: W - right, y: H - 4, 'text-anchor': 'end'}, xName));
    for (const s of series) {
      if (s.band)
        svg.append(make('path', {style: `fill: ${s.colour}; opacity: ${s.opacity}; stroke: none`,
          d: path(s.band.map(b => [b[0], b[1]])) +
             path([...s.band].reverse().map(b => [b[0], b[2]])).replace('M', 'L') + 'Z'}));
      const style = `stroke: ${s.colour}`;
      const corners = !s.bars ? s.points : s.points.flatMap(([x, y]) =>
        [[x - s.bars / 2, y], [x + s.bars / 2, y]]);
      svg.append(make('path', {d: path(corners), style, 'stroke-dasharray': s.dash}));
      if (s.points.length < 20 && !s.bars)
        svg.append(make('path', {d: s.points.map(p => `M${X(p[0])} ${Y(p[1])}h.01`).join(''),
          style: style + '; stroke-width: 5; stroke-linecap: round'}));
    }
    const cursor = make('line', {class: 'cursor', y1: top, y2: H - bottom, visibility: 'hidden'});
    svg.append(cursor);
    const move = to => {
      at = to;
      cursor.setAttribute('visibility', at < 0 ? 'hidden' : 'visible');
      if (at >= 0) for (const a of ['x1', 'x2']) cursor.setAttribute(a, X(xs[at]));
      legend();
    };
    svg.addEventListener('pointermove', e => {
      const x = (e.clientX - svg.getBoundingClientRect().left);
      move(xs.reduce((best, v, i) => Math.abs(X(v) - x) < Math.abs(X(xs[best]) - x) ? i : best, 0));
    });
    svg.addEventListener('pointerleave', () => move(-1));
    svg.addEventListener('blur', () => move(-1));
    svg.addEventListener('focus', () => readout.setAttribute('aria-live', 'polite'));
    svg.addEventListener('keydown', e => {
      const to = {ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: xs.length - 1}[e.key];
      if (to == null) return;
      e.preventDefault();
      move(Math.max(0, Math.min(xs.length - 1, to)));
    });
    holder.replaceChildren(svg);
  }
  legend();
  const fit = () => {
    const now = Math.round(holder.clientWidth);
    if (!now || now === width) return;
    width = now;
    draw();
  };
  unfitted.push(fit);
  new ResizeObserver(fit).observe(holder);
  const table = make('details', {ontoggle: e => {
    if (e.target.open && e.target.children.length === 1)
      e.target.append(make('div', {class: 'scroll', tabindex: 0, role: 'region',
                                   'aria-label': `${title}, numbers`}, make('table', {},
        make('thead', {}, make('tr', {}, make('th', {class: 'n', scope: 'col'}, xName),
          series.map(s => make('th', {class: 'n', scope: 'col'}, visible(s.label))))),
        make('tbody', {}, xs.map(x => make('tr', {}, make('td', {class: 'n'}, exact(x)),
          series.map(s => make('td', {class: 'n'}, exact(value(s, x))))))))));
  }}, make('summary', {}, 'numbers'));
  return make('figure', {}, make('h3', {}, title),
    make('figcaption', {}, unit, caption ? [make('br'), caption] : ''), holder, readout, table);
}
const where = q => make('span', {}, make('code', {}, q.fn), ' in ', make('code', {}, q.file));
const colour = i => `var(--s${i % 6 + 1})`;
/* The curves of one panel: of one run a colour for each line, of several a colour for each run. */
function panel(p, runs) {
  const several = runs.length > 1, series = [];
  const keys = p.instead && !runs.some(r => p.keys.some(([k]) => has(r, k))) ? p.instead : p.keys;
  runs.forEach((run, r) => keys.forEach(([key, label], k) => {
    const points = run.log.filter(line => given(line, key))
      .map(line => [line.step, line[key] * (p.factor ?? 1)]);
    if (points.length)
      series.push({label: several ? `${run.name}, ${label}` : label, points,
                   colour: colour(several ? r : k), dash: DASHES[k % 4]});
  }));
  return series.length ? chart(p.title, p.unit, 'step', series, p.fn ? where(p) : '') : null;
}
/* Bands of quantiles of a number at each step: 5 to 95 %, 25 to 75 %, and the median. */
function bands(title, unit, rows, tint) {
  const steps = new Map();
  for (const [step, x] of rows)
    if (x != null) steps.has(step) ? steps.get(step).push(x) : steps.set(step, [x]);
  const all = [...steps].sort(by(s => s[0])).map(([s, v]) => [s, v.sort((a, b) => a - b)]);
  if (all.length < 2) return null;
  const band = (p, q) => all.map(([s, v]) => [s, quantile(v, p), quantile(v, q)]);
  const line = q => all.map(([s, v]) => [s, quantile(v, q)]);
  const one = (label, q, more) => ({label, points: line(q), colour: tint, ...more});
  return chart(title, unit, 'step', [
    one('5 %', .05, {dash: '1 3', band: band(.05, .95), opacity: .13}),
    one('25 %', .25, {dash: '5 3', band: band(.25, .75), opacity: .22}),
    one('median', .5, {dash: ''}), one('75 %', .75, {dash: '5 3'}),
    one('95 %', .95, {dash: '1 3'})], '');
}
/* Histograms over each other: groups [[label, numbers]]. */
function histogram(title, unit, groups) {
  const all = groups.flatMap(g => g[1]).filter(x => x != null && isFinite(x));
  if (all.length < 2) return null;
  const low = smallest(all), high = largest(all);
  const n = 24, step = high / n - low / n || 1;
  const series = groups.map(([label, x], g) => {
    const count = new Array(n).fill(0);
    for (const v of x)
      if (v != null && isFinite(v)) count[Math.min(n - 1, Math.floor(span(low, v) / step))]++;
    return {label, colour: colour(g), dash: DASHES[g % 4], bars: step,
            points: count.map((c, i) => [low + (i + .5) * step, c])};
  });
  return chart(title, unit, 'value', series, '');
}
