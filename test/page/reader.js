/*
 * reader.js - the second half of a page's script: the kinds of dumps, the reader, which lists the
 * texts of one of them with a number for each token, and the start. See charts.js.
 */

/* ---- kinds of dumps -------------------------------------------------------------------------- */

/*
 * A view is the files of one kind and name, one of each run. It becomes a list of entries, each of
 * one or more cells side by side. A row is {run, file, i}: line i of a file.
 *   entries(view)     all entries: {rows, and the numbers by which they are sorted and chosen}
 *   sorts             [name, compare] for two entries; the first is the order at the start
 *   cell(row, entry)  what is shown of it: {head: [text], blocks, extra}
 * A block is a text as tokens: {label, pieces, ids, from, n, src, first}. Tokens from..from+n have
 * numbers; at(key, i) is that of token i. src and first: the lines after training and before.
 */
const col = (row, name) => row.file.columns[name][row.i];
const get = row => lineOf(row.file, row.i);
const rowsOf = view => view.files.flatMap(({run, file}) =>
  Array.from({length: file.n}, (_, i) => ({run, file, i})));
/* What a title adds where there are several runs. */
const ofRun = (view, run) => view.files.length > 1 ? `, ${run.name}` : '';
function block(label, src, {from = 0, first = null, name = null} = {}) {
  const pieces = src.pieces ?? src.tokens.map(t => `[${t}]`);
  return {label, src, first, pieces, from, ids: src.tokens, name, likeliest: src.likeliest,
          at: (key, i) => src[key]?.[i - from] ?? null};
}
const prose = (label, text, role = 'plain') => {
  const shown = visible(text ?? '');  // a prompt on one line
  return [make('div', {class: 'says'}, label), make('div', {class: `text ${role}`},
    role === 'plain' ? shown.replace(/\n/g, '\u21b5\u200b') : shown)];
};
const END_OF_TEXT = '<|endoftext|>';
const unnumbered = piece =>
  piece === END_OF_TEXT ? '\u25a0' : visible(piece).replace(/\n/g, '\u21b5\u200b');
const quoted = piece => `\u201c${visible(piece).replace(/\n/g, '\u21b5')}\u201d`;
/* Rows with the same number `key` of all runs together, the first and the last step of each run. */
function beforeAfter(view, key) {
  const found = new Map();
  for (const row of rowsOf(view)) {
    const id = col(row, key), step = col(row, 'step');
    if (!found.has(id)) found.set(id, {id, ends: new Map()});
    const ends = found.get(id).ends, e = ends.get(row.run);
    if (!e) ends.set(row.run, {first: row, last: row, a: step, b: step});
    else if (step >= e.b) [e.last, e.b] = [row, step];
    else if (step < e.a) [e.first, e.a] = [row, step];
  }
  return [...found.values()].map(f => {
    const ends = [...f.ends.values()];
    return {id: f.id, ends, rows: ends.map(e => e.last)};
  });
}
const earlier = (entry, row) => {
  const e = entry.ends.find(x => x.last === row);
  return e.a < e.b ? e.first : null;
};
/* Histograms of a number of the rows, one for each file: at its first step and at its last. */
const histograms = (view, title, unit, number) => view.files.map(({run, file}) => {
  const steps = file.columns.step, first = smallest(steps), last = largest(steps);
  const at = s => steps.map((x, i) => x === s ? number({run, file, i}) : null);
  return histogram(title + ofRun(view, run), unit,
    first < last ? [['before', at(first)], ['after', at(last)]] : [['now', at(last)]]);
});
/* The reward of the better answer less that of the other. p: that the chosen one is better. */
const margin = (p, chosen, rejected) => (p < .5 ? -1 : 1) * (chosen - rejected);
const marginOf = row => margin(col(row, 'p_chosen'), col(row, 'chosen'), col(row, 'rejected'));
const answerText = x => (x.pieces ?? []).join('');

const KINDS = {
  rollouts: {
    title: 'Answers and their tokens', noun: 'answer',
    intro: 'Each answer of the policy with a number for each of its tokens. Point at a token, or ' +
           'use the arrow keys in the list. The numbers of an iteration are those before its ' +
           'updates.',
    entries: view => rowsOf(view).map(row => ({rows: [row], step: col(row, 'step'),
      held: col(row, 'held_out'), query: col(row, 'query'), score: col(row, 'score'),
      kl: col(row, 'kl_k1'), length: col(row, 'length')})),
    sorts: [['in order', () => 0], ['highest score', by(e => -e.score)],
            ['lowest score', by(e => e.score)], ['highest KL', by(e => -e.kl)],
            ['lowest KL', by(e => e.kl)], ['longest', by(e => -e.length)],
            ['shortest', by(e => e.length)]],
    cell(row) {
      const s = get(row), T = s.logp.length;
      const b = block('', s, {from: s.tokens.length - T});
      return {
        head: [s.held_out == null ? `iteration ${s.step}, answer ${s.episode}`
               : `held-out, ${s.step ? `after step ${s.step}` : 'before training'}`,
               `line ${s.line}`, ['score', s.score], ['KL', col(row, 'kl_k1')],
               ['tokens', T], s.ended ? '' : 'not ended'],
        blocks: [b], extra: s.pieces ? [] : prose('response', s.response)};
    },
    text: row => { const s = get(row); return s.prompt + s.response; },
    shapes(view) {
      return view.files.flatMap(({run, file}) => {
        const c = file.columns, name = ofRun(view, run);
        const rows = what => c.step.map((s, i) => c.held_out[i] ? [s, null] : [s, c[what][i]]);
        return [bands(`Scores of an iteration${name}`, 'score of the judge', rows('score'),
                      colour(0)),
                bands(`Lengths of an iteration${name}`, 'tokens', rows('length'), colour(2)),
                bands(`KL of an iteration${name}`, 'nats per answer, sampled', rows('kl_k1'),
                      colour(3))];
      });
    }},
  tokens: {
    title: 'Held-out records', noun: 'record',
    intro: 'Each held-out record, before training and after. The scored tokens are coloured; the ' +
           'others are grey, and the model learns nothing from them.',
    entries(view) {
      const all = beforeAfter(view, 'record');
      for (const e of all) {
        e.after = col(e.rows[0], 'loss');
        e.before = col(e.ends[0].first, 'loss');
        e.gain = e.before - e.after;
        e.scored = col(e.rows[0], 'scored');
      }
      return all;
    },
    sorts: [['most gained', by(e => -e.gain)], ['least gained', by(e => e.gain)],
            ['highest loss after', by(e => -e.after)],
            ['highest loss per token after', by(e => -e.after / e.scored)],
            ['in order', by(e => e.id)]],
    cell(row, entry) {
      const was = earlier(entry, row), s = get(row), from = s.loss.findIndex(x => x != null);
      const scored = col(row, 'scored');
      const b = block('', s, {first: was && get(was)});
      b.at = (key, i) => s[key]?.[i] ?? null;
      b.plain = i => s.loss[i] == null;
      b.from = Math.max(0, from);
      return {head: [`record ${s.record}`, `line ${s.line}`,
                     was && ['loss before', col(was, 'loss')], ['after', col(row, 'loss')],
                     ['per token', col(row, 'loss') / scored], ['scored tokens', scored]],
              blocks: [b]};
    },
    text: row => answerText(get(row)),
    shapes: view => histograms(view, 'Loss of a record', 'records by nats per scored token',
      row => col(row, 'loss') / col(row, 'scored'))},
  pairs: {
    title: 'Held-out pairs', noun: 'pair',
    intro: 'The chosen and the rejected answer with the reward that the model would give if the ' +
           'answer ended at a token. The margin is the reward of the better answer less that of ' +
           'the other; below 0 the model is wrong.',
    entries(view) {
      const all = beforeAfter(view, 'pair');
      for (const e of all) {
        e.margin = marginOf(e.rows[0]);
        e.change = e.margin - marginOf(e.ends[0].first);
        e.top = Math.max(col(e.rows[0], 'chosen'), col(e.rows[0], 'rejected'));
      }
      return all;
    },
    sorts: [['worst mistakes', by(e => e.margin)], ['largest margin', by(e => -e.margin)],
            ['least certain', by(e => Math.abs(e.margin))],
            ['most improved', by(e => -e.change)], ['highest reward', by(e => -e.top)],
            ['in order', by(e => e.id)]],
    cell(row, entry) {
      const was = earlier(entry, row), s = get(row), w = was && get(was);
      const marginIn = x => margin(s.p_chosen, x.chosen.score, x.rejected.score);
      const part = name => block(
        `${name}  ${short(s[name].score)}${w ? ` (before: ${short(w[name].score)})` : ''}`,
        s[name], {first: w && w[name], name});
      return {head: [`pair ${s.pair}`, `line ${s.line}`,
                     ['margin', marginIn(s)], w && ['before', marginIn(w)],
                     s.p_chosen === 1 ? null : ['p_chosen', s.p_chosen],
                     marginIn(s) <= 0 ? 'wrong' : ''],
              extra: prose('prompt', s.prompt), blocks: [part('chosen'), part('rejected')],
              side: true};
    },
    text: row => { const s = get(row); return s.prompt + answerText(s.chosen) +
                                              answerText(s.rejected); },
    shapes: view => histograms(view, 'Margins',
      'pairs by reward of the better answer less that of the other', marginOf)},
  dialogues: {
    title: 'Dialogues', noun: 'dialogue',
    intro: 'The model answers a prompt, criticises its answer by a principle, and revises it. It ' +
           'learns the last revision. converse in constitutional.c holds these dialogues.',
    entries(view) {
      if (view.files.every(({file}) => file.columns.step.every(s => s != null))) {
        return beforeAfter(view, 'id').map(e => ({...e, pairs: true, revisions:
          col(e.rows[0], 'revisions'), rows: e.ends.flatMap(x => x.a < x.b ? [x.first, x.last]
                                                                           : [x.last])}));
      }
      return rowsOf(view).map(row =>
        ({id: col(row, 'id'), rows: [row], revisions: col(row, 'revisions')}));
    },
    sorts: [['in order', () => 0], ['most revisions', by(e => -e.revisions)],
            ['fewest revisions', by(e => e.revisions)]],
    cell(row, entry) {
      const s = get(row), step = s.step;
      const turns = [prose('prompt', s.init_prompt),
                     make('div', {class: 'turn'}, prose('answer', s.init_response, ''))];
      for (const r of s.rounds) {
        turns.push(make('div', {class: 'turn critique'},
          prose(`critique by the principle: ${visible(r.principle ?? 'unnamed')}`,
                r.critic_response, '')));
        if (r.revision_response != null)
          turns.push(make('div', {class: 'turn revision'},
                          prose('revision', r.revision_response, '')));
      }
      return {head: [entry.pairs ? (step ? `after step ${step}` : 'before training')
                                 : `epoch ${s.epoch}`, `prompt ${s.id + 1}`,
                     ['revisions', col(row, 'revisions')], s.ended ? `ended: ${s.ended}` : ''],
              blocks: [], extra: turns};
    },
    text: row => JSON.stringify(get(row)), shapes: () => []},
  labels: {
    title: 'Labels of pairs', noun: 'pair',
    intro: 'Two answers and the probability that the first is better, by the model itself. It is ' +
           'asked in both orders, so that a preference for the option shown first cancels: ' +
           'debiased in constitutional.c.',
    entries: view => rowsOf(view).map(row => ({rows: [row], p: col(row, 'p_chosen'),
      apart: Math.abs(col(row, 'first') - col(row, 'second')) || 0})),
    sorts: [['in order', () => 0], ['least certain', by(e => e.p)], ['most certain', by(e => -e.p)],
            ['orders most apart', by(e => -e.apart)]],
    cell(row) {
      const s = get(row);
      return {head: [['p_chosen', s.p_chosen], s.p_chosen_first != null &&
                     ['chosen shown first', s.p_chosen_first], s.p_chosen_second != null &&
                     ['shown second', s.p_chosen_second],
                     s.p_chosen_first == null ? 'label read from a file' : ''],
              blocks: [], extra: [prose('prompt', s.prompt),
                make('div', {class: 'cells many'},
                  make('div', {class: 'turn revision'}, prose('chosen', s.chosen, '')),
                  make('div', {class: 'turn critique'}, prose('rejected', s.rejected, '')))]};
    },
    text: row => { const s = get(row); return (s.prompt ?? '') + s.chosen + s.rejected; },
    shapes: view => view.files.map(({file}) => histogram('Labels', 'pairs by probability', [
      ['p_chosen', file.columns.p_chosen],
      ['chosen shown first', file.columns.first], ['chosen shown second', file.columns.second]]
      .filter(g => g[1].some(x => x != null))))},
};

/* ---- the reader ------------------------------------------------------------------------------ */

/* A list of entries of which only those on the screen exist as elements, with tools above it and,
   next to it, the numbers of the token in question. */
class Reader {
  constructor(view, number) {
    this.kind = KINDS[view.kind];
    this.view = view;
    this.all = this.kind.entries(view);
    this.limits = new Map();
    this.sample = this.samples();
    this.quantities = QUANTITIES[view.kind].filter(q => this.scaleOf(q).some);
    this.quantity = this.quantities.find(q => q.key === 'advantage') ?? this.quantities[0];
    this.id = `reader-${number}`;
    this.shown = new Map();
    this.at = 0;
    this.token = null;
    this.only = null;  // {held, query}: the prompt that is followed through the iterations
    this.section = this.build();
  }
  /* Some blocks from all over the list, for the range of colours. */
  samples() {
    const blocks = [], step = Math.max(1, Math.floor(this.all.length / 60));
    for (let e = 0; e < this.all.length; e += step)
      for (const row of this.all[e].rows) blocks.push(...this.kind.cell(row, this.all[e]).blocks);
    return blocks;
  }
  number(q, b, i) {
    if (i < b.from || b.plain?.(i)) return null;
    const x = q.get ? q.get(b, i) : b.at(q.key, i);
    return x == null || !isFinite(x) ? null : x;
  }
  /* The value that gets the full colour: 98 % of the tokens are within it. */
  scaleOf(q) {
    if (this.limits.has(q.key)) return this.limits.get(q.key);
    const sizes = [];
    let low = Infinity, high = -Infinity;
    for (const b of this.sample)
      for (let i = b.from; i < b.pieces.length; i++) {
        const x = this.number(q, b, i);
        if (x == null) continue;
        sizes.push(Math.abs(x - (q.centre ?? 0)));
        low = Math.min(low, x);
        high = Math.max(high, x);
      }
    sizes.sort((a, b) => a - b);
    const most = sizes.length ? quantile(sizes, .98) || sizes[sizes.length - 1] : 0;
    const scale = {some: most > 0 || q.scale === 'share' && sizes.length > 0,
                   most: q.scale === 'share' ? 1 : most};
    this.limits.set(q.key, scale);
    return scale;
  }
  build() {
    const {kind, view, id} = this;
    const select = (label, options, change, chosen = '') => make('label', {}, label,
      make('select', {onchange: e => change(e.target.value)},
        options.map(([value, text]) => make('option', {value, selected: value === chosen}, text))));
    const steps = [...new Set(this.all.map(e => e.step).filter(s => s != null))].sort(by(s => s));
    const held = this.all.some(e => e.held), training = this.all.some(e => e.held === 0);
    const runs = view.files.length > 1 && view.kind === 'rollouts';
    this.filter = {step: '', held: training ? '0' : '', run: '', words: ''};
    const set = name => value => { this.filter[name] = value; this.choose(); };
    this.key = make('div', {class: 'key'});
    this.list = make('div', {class: 'list', role: 'feed', tabindex: 0, 'aria-label':
      `${kind.title}. Up and down: ${kind.noun}s; left and right: tokens`,
      onscroll: () => this.draw(), onkeydown: e => this.press(e)});
    this.canvas = make('div', {style: 'position: relative'});
    this.list.append(this.canvas);
    this.list.addEventListener('pointerover', e => this.point(e));
    this.list.addEventListener('click', e => this.point(e));
    this.about = make('aside', {class: 'about', 'aria-label': 'Numbers of the token',
                                'aria-live': 'polite'});
    this.count = make('p', {class: 'caption', role: 'status'});
    this.back = make('button', {type: 'button', hidden: true,
      onclick: () => { this.only = null; this.choose(); }}, 'show all prompts again');
    let later;
    const tools = make('div', {class: 'tools', role: 'group', 'aria-label': 'What to show'},
      this.quantities.length ? select('colour by', this.quantities.map(q => [q.key, q.name]), v => {
        this.quantity = this.quantities.find(q => q.key === v);
        this.legend();
        this.draw(true);
        this.tell();
      }, this.quantity.key) : null,
      select('sort', kind.sorts.map(([name], i) => [i, name]), v => {
        this.order = kind.sorts[v][1];
        this.choose();
      }),
      steps.length > 1 ? select('iteration', [['', 'all'], ...steps.map(s =>
        [s, s ? s : 'before'])], set('step')) : null,
      held && training ? select('prompts', [['', 'all'], ['0', 'training'], ['1', 'held-out']],
                                set('held'), this.filter.held) : null,
      runs ? select('run', [['', 'all'], ...view.files.map((f, i) => [i, f.run.name])],
                    set('run')) : null,
      make('label', {}, 'find', make('input', {type: 'search', oninput: e => {
        clearTimeout(later);
        later = setTimeout(() => set('words')(e.target.value.toLowerCase()), 200);
      }})), this.back);
    this.order = kind.sorts[0][1];
    this.section = make('section', {'aria-labelledby': id}, make('h2', {id}, view.title),
      make('p', {}, kind.intro), tools, this.key, this.count,
      make('div', {class: this.quantities.length ? 'reader' : ''}, this.list,
        this.quantities.length ? this.about : null));
    this.legend();
    new ResizeObserver(() => {
      if (this.width === this.list.clientWidth && this.height === this.list.clientHeight) return;
      this.height = this.list.clientHeight;
      if (this.width !== this.list.clientWidth) {
        this.width = this.list.clientWidth;
        this.choose(true);
      } else this.draw();
    }).observe(this.list);
    return this.section;
  }
  legend() {
    const q = this.quantity;
    if (!q) return;
    const {most} = this.scaleOf(q), c = q.centre ?? 0;
    const both = q.scale === 'both', to = both ? 'var(--up)' : 'var(--much)';
    const from = both ? 'var(--down), transparent' : 'transparent';
    this.key.replaceChildren(
      both ? `\u2264 ${short(c - most)}` : '0',
      make('span', {class: 'ramp', role: 'img', 'aria-label': 'colour scale',
        style: `background: linear-gradient(90deg in oklab, ${from}, ${to})`}),
      q.scale === 'share' ? '1' : `\u2265 ${short(c + most)}`,
      make('span', {}, q.name, q.unit ? `, ${q.unit}` : ''));
  }
  /* Chooses and sorts the entries. keep: the same ones as before, laid out for another width. */
  choose(keep = false) {
    if (!keep) {
      const f = this.filter, o = this.only;
      let some = this.all.filter(e => (f.step === '' || e.step === Number(f.step)) &&
        (f.held === '' || e.held === Number(f.held)) &&
        (f.run === '' || e.rows[0].run === this.view.files[f.run].run));
      if (o) some = this.follow(o);
      if (f.words)
        some = some.filter(e =>
          e.rows.some(r => this.kind.text(r).toLowerCase().includes(f.words)));
      this.entries = [...some];
      if (!o) this.entries.sort(this.order);
      this.at = 0;
      this.token = null;
      this.list.scrollTop = 0;
      this.back.hidden = !o;
      const part = some.length < this.all.length;
      this.count.textContent = o
        ? `One prompt through the iterations: ${plural(some.length, 'row')}`
        : plural(some.length, this.kind.noun) +
          (part ? ` of ${this.all.length.toLocaleString('en')}` : '');
    }
    const letters = Math.max(20, (this.width ?? 600) / 8.5);
    this.heights = this.entries.map(e => 64 + 26 * Math.ceil((e.length ?? 90) * 2.2 / letters));
    this.add();
    for (const e of this.shown.values()) e.remove();
    this.shown.clear();
    this.draw();
    this.tell();
  }
  /* The answers to one prompt: an entry for each step, with a cell for each answer of each run. */
  follow({held, query, prompt}) {
    const steps = new Map();
    for (const e of this.all) {
      if (e.held !== held || e.query !== query || get(e.rows[0]).prompt !== prompt) continue;
      if (!steps.has(e.step)) steps.set(e.step, {...e, rows: [], followed: true});
      steps.get(e.step).rows.push(...e.rows);
    }
    return [...steps.values()].sort(by(e => e.step));
  }
  add() {
    this.tops = new Float64Array(this.entries.length + 1);
    for (let i = 0; i < this.entries.length; i++) this.tops[i + 1] = this.tops[i] + this.heights[i];
    this.canvas.style.height = `${this.tops[this.entries.length]}px`;
  }
  find(y) {
    let low = 0, high = this.entries.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.tops[middle] <= y) low = middle;
      else high = middle - 1;
    }
    return low;
  }
  /* Makes the elements of the entries on the screen. When they are measured, those above that are
     not the height that was guessed move the list, so that what is read stays where it is. */
  draw(anew = false) {
    if (!this.entries) return;
    const {list, canvas, shown} = this;
    if (!this.entries.length) {
      canvas.replaceChildren(make('p', {class: 'entry soft'}, `no ${this.kind.noun} fits`));
      return;
    }
    if (canvas.firstChild?.tagName === 'P') canvas.replaceChildren();
    if (anew) {
      for (const e of shown.values()) e.remove();
      shown.clear();
    }
    for (let pass = 0; pass < 4; pass++) {
      const top = list.scrollTop, anchor = this.find(top), within = top - this.tops[anchor];
      const first = Math.max(0, this.find(top - 300));
      const last = Math.min(this.entries.length - 1, this.find(top + list.clientHeight + 300));
      for (const [i, e] of shown)
        if (i < first || i > last) {
          e.remove();
          shown.delete(i);
        }
      for (let i = first; i <= last; i++)
        if (!shown.has(i)) {
          const e = this.element(i);
          shown.set(i, e);
          canvas.append(e);
        }
      let changed = false;
      for (const [i, e] of shown) {
        const h = e.offsetHeight;
        if (h && h !== this.heights[i]) {
          this.heights[i] = h;
          changed = true;
        }
      }
      if (changed) {
        this.add();
        const to = this.tops[anchor] + within;
        if (Math.abs(to - list.scrollTop) > .5) list.scrollTop = to;
      }
      for (const [i, e] of shown) e.style.top = `${this.tops[i]}px`;
      if (!changed) break;
    }
    this.mark();
  }
  element(i) {
    const entry = this.entries[i];
    const cells = entry.rows.map((row, c) => {
      const cell = this.kind.cell(row, entry);
      const several = this.view.files.length > 1;
      const head = make('div', {class: 'head'},
        several ? make('b', {}, visible(row.run.name)) : null,
        cell.head.filter(Boolean).map(h => Array.isArray(h)
          ? make('span', {}, `${h[0]} `, make('b', {}, short(h[1]))) : make('span', {}, h)),
        this.view.kind === 'rollouts' && !entry.followed ? make('button', {type: 'button',
          tabindex: -1, title: 'the same prompt through the iterations', onclick: () => {
            this.only = {held: entry.held, query: entry.query, prompt: get(row).prompt};
            this.choose();
          }}, 'follow prompt') : null);
      const blocks = cell.blocks.map((b, k) => make('div', {},
        b.label ? make('div', {class: 'says'}, b.label) : null,
        make('div', {class: 'text'}, this.spans(b, `${i} ${c} ${k}`))));
      return make('div', {}, head, cell.extra ?? [],
        cell.side ? make('div', {class: 'cells many'}, blocks) : blocks);
    });
    return make('article', {class: 'entry', 'aria-posinset': i + 1, 'aria-setsize':
      this.entries.length, 'aria-label': `${this.kind.noun} ${i + 1}`},
      make('div', {class: cells.length > 1 ? 'cells many' : 'cells'}, cells));
  }
  /* A block's tokens. Those without numbers, such as a prompt's, share one element. */
  spans(b, name) {
    const numbered = t => t >= b.from && !b.plain?.(t), spans = [];
    for (let t = 0, to; t < b.pieces.length; t = to) {
      to = t + 1;
      if (t && t === b.from) spans.push(make('br'));
      if (numbered(t)) {
        spans.push(this.piece(b, b.pieces[t], t, `${name} ${t}`));
        continue;
      }
      while (to < b.pieces.length && to !== b.from && !numbered(to)) to++;
      spans.push(make('span', {class: 't none'}, b.pieces.slice(t, to).map(unnumbered).join('')));
    }
    return spans;
  }
  piece(b, piece, t, name) {
    const q = this.quantity, x = this.number(q, b, t);
    let shade = '', kind = '';
    if (x != null) {
      const {most} = this.scaleOf(q), d = x - (q.centre ?? 0);
      shade = Math.min(1, Math.abs(d) / (most || 1)).toFixed(3);
      kind = q.scale !== 'both' ? ' s' : d < 0 ? ' d' : ' u';
    }
    if (piece === '') kind += ' stub';
    const end = piece === END_OF_TEXT;
    return make('span', {class: `t${kind}${end ? ' end' : ''}`, 'data-t': name,
      style: shade ? `--m: ${shade}` : null},
      end ? '\u25a0' : visible(piece).replace(/\n/g, '\u21b5\n'));
  }
  /* The token that the pointer or the keys chose: [entry, cell, block, token]. */
  point(e) {
    const t = e.target.closest?.('[data-t]');
    if (!t) return;
    const [i, c, k, at] = t.dataset.t.split(' ').map(Number);
    this.at = i;
    this.token = [c, k, at];
    this.mark();
    this.tell();
  }
  blockAt() {
    const entry = this.entries[this.at];
    if (!entry || !this.token) return null;
    return this.kind.cell(entry.rows[this.token[0]], entry).blocks[this.token[1]];
  }
  mark() {
    for (const e of this.list.querySelectorAll('.on')) e.classList.remove('on');
    this.shown.get(this.at)?.classList.add('on');
    if (!this.token) return;
    const name = [this.at, ...this.token].join(' ');
    this.list.querySelector(`[data-t="${name}"]`)?.classList.add('on');
  }
  tell() {
    const b = this.entries?.length ? this.blockAt() : null, q = this.quantity;
    if (!q) return;
    if (!b) {
      this.about.replaceChildren(make('p', {class: 'caption'}, 'Point at a token to see its ' +
        'numbers, or focus the list and use the arrow keys.'),
        make('p', {class: 'formula'}, q.formula),
        make('p', {class: 'caption'}, q.say, ' ', where(q)));
      return;
    }
    const t = this.token[2], piece = b.pieces[t];
    const likeliest = b.likeliest?.[t];
    this.about.replaceChildren(
      make('h3', {}, piece === '' ? 'part of a character' : quoted(piece)),
      make('p', {class: 'caption'}, `token ${t - b.from + 1} of ${b.pieces.length - b.from}`,
        b.name ? `, ${b.name}` : '', `, id ${b.ids[t]}`,
        likeliest == null ? '' : likeliest === piece ? '; it is the likeliest'
          : `; the likeliest is ${quoted(likeliest)}`),
      make('table', {}, make('tbody', {}, this.quantities.map(v =>
        make('tr', {class: v === q ? 'chosen' : null}, make('th', {scope: 'row'}, v.name),
          make('td', {class: 'n'}, this.tellNumber(v, b, t)), make('td', {}, v.unit))))),
      make('p', {class: 'formula'}, q.formula), make('p', {class: 'caption'}, where(q)));
  }
  /* A number as the dump has it; one computed here, rounded to what a float holds. */
  tellNumber(q, b, t) {
    const x = this.number(q, b, t);
    return exact(x != null && q.get ? Number(x.toPrecision(9)) : x);
  }
  press(e) {
    if (e.target !== this.list || !this.entries.length) return;
    const rows = {ArrowDown: 1, ArrowUp: -1, j: 1, k: -1, PageDown: 10, PageUp: -10}[e.key];
    const step = {ArrowRight: 1, ArrowLeft: -1}[e.key];
    if (rows) {
      this.at = Math.max(0, Math.min(this.entries.length - 1, this.at + rows));
      this.token = null;
      this.show();
    } else if (step || e.key === 'Home' || e.key === 'End') {
      this.walk(step, e.key);
    } else if (e.key === 'Escape' && this.only) {
      this.only = null;
      this.choose();
    } else return;
    e.preventDefault();
  }
  /* Moves to another token of the entry, through all of its cells and blocks. */
  walk(step, key) {
    const entry = this.entries[this.at], all = [];
    entry.rows.forEach((row, c) => this.kind.cell(row, entry).blocks.forEach((b, k) => {
      for (let t = b.from; t < b.pieces.length; t++) if (!b.plain?.(t)) all.push([c, k, t]);
    }));
    if (!all.length) return;
    const now = this.token ? all.findIndex(x => x.join() === this.token.join()) : -1;
    const end = all.length - 1;
    const next = now < 0 ? (step > 0 ? 0 : end) : Math.max(0, Math.min(end, now + step));
    this.token = all[key === 'Home' ? 0 : key === 'End' ? end : next];
    this.show();
  }
  show() {
    const {list} = this;
    for (let pass = 0; pass < 2; pass++) {
      const top = this.tops[this.at], bottom = top + this.heights[this.at];
      const room = list.clientHeight;
      if (top < list.scrollTop || bottom - top > room) list.scrollTop = top;
      else if (bottom > list.scrollTop + room) list.scrollTop = bottom - room;
      this.draw();
    }
    const chosen = this.list.querySelector('.t.on');
    if (chosen) {
      const box = chosen.getBoundingClientRect(), frame = list.getBoundingClientRect();
      if (box.bottom > frame.bottom) list.scrollTop += box.bottom - frame.bottom + 30;
    }
    this.tell();
  }
}

/* ---- start ----------------------------------------------------------------------------------- */

function section(id, title, ...children) {
  return make('section', {'aria-labelledby': id}, make('h2', {id}, title), ...children);
}
function curves() {
  const kinds = [...new Set(data.runs.map(kindOf).filter(Boolean))], known = new Set(['step']);
  const panels = kinds.flatMap(kind => PANELS[kind].map(p => {
    for (const [k] of [...p.keys, ...(p.instead ?? [])]) known.add(k);
    return panel(p, data.runs.filter(r => kindOf(r) === kind));
  })).filter(Boolean);
  const keys = [...new Set(data.runs.flatMap(r => r.log.flatMap(Object.keys)))]
    .filter(k => !known.has(k) && data.runs.some(r => has(r, k)));
  if (!panels.length && !keys.length) return null;
  const more = make('details', {ontoggle: e => {
    if (!e.target.open || e.target.children.length > 1) return;
    e.target.append(make('div', {class: 'panels'}, keys.map(k =>
      panel({title: visible(k), unit: 'as in log.jsonl', keys: [[k, k]]}, data.runs))));
    fitCharts();
  }}, make('summary', {}, `${plural(keys.length, 'other number')} of the log`));
  return section('curves', 'Curves', make('div', {class: 'panels'}, panels),
                 keys.length ? more : null);
}
function meanings(kinds) {
  const rows = kinds.flatMap(k => QUANTITIES[k]);
  if (!rows.length) return null;
  return section('meaning', 'What the numbers mean',
    make('p', {class: 'caption'}, 'y\u209c: token t of an answer to the prompt x. ' +
      '\u03c0_old: the policy that sampled it. \u03c0_ref: the reference, the model at the ' +
      'start. Logarithms are natural, so their unit is the nat.'),
    make('div', {class: 'meaning'}, make('table', {}, make('thead', {}, make('tr', {},
      ['number', 'formula', 'unit', 'meaning', 'computed by'].map(h =>
        make('th', {scope: 'col'}, h)))),
      make('tbody', {}, rows.map(q => make('tr', {}, make('td', {}, make('b', {}, q.name)),
        make('td', {}, make('span', {class: 'formula'}, q.formula)), make('td', {}, q.unit),
        make('td', {}, q.say), make('td', {}, where(q))))))));
}
function notes() {
  const bad = [];
  for (const run of data.runs) {
    for (const f of [{...run, name: `${run.name}/log.jsonl`}, ...run.files]) {
      if (f.left_out)
        bad.push(make('li', {}, `${visible(f.name)}: left out ${plural(f.left_out, 'line')}`,
          make('ul', {}, f.reasons.map(r => make('li', {}, visible(r))),
            f.left_out > f.reasons.length ? make('li', {}, '\u2026') : null)));
    }
  }
  return bad.length ? section('left-out', 'Left out', make('ul', {id: 'bad-lines'}, bad)) : null;
}
/* The files of all runs, one view for each kind and name. */
function views() {
  const found = new Map();
  for (const run of data.runs)
    for (const file of run.files) {
      if (!file.n) continue;
      const base = file.name.replace(/.*\//, ''), id = `${file.kind} ${base}`;
      if (!found.has(id)) found.set(id, {kind: file.kind, base, files: []});
      found.get(id).files.push({run, file});
    }
  const all = Object.keys(KINDS).flatMap(k => [...found.values()].filter(v => v.kind === k));
  for (const v of all)
    v.title = KINDS[v.kind].title + (all.filter(w => w.kind === v.kind).length > 1
                                     ? `: ${visible(v.base)}` : '');
  return all;
}
function theme() {
  const names = {'': 'system', light: 'light', dark: 'dark'}, order = ['', 'light', 'dark'];
  const button = make('button', {type: 'button', onclick: () => {
    const next = order[(order.indexOf(document.documentElement.dataset.theme ?? '') + 1) % 3];
    if (next) document.documentElement.dataset.theme = next;
    else delete document.documentElement.dataset.theme;
    button.textContent = `colours: ${names[next]}`;
  }}, 'colours: system');
  return button;
}
const HINTS = {ppo: '--dump_rollouts', supervised: '--dump_tokens', reward: '--dump_tokens',
               constitutional: '--dump_dialogues'};
function start() {
  const main = byId('main'), nav = document.querySelector('nav'), all = views();
  const names = data.runs.map(r => visible(r.name));
  byId('title').textContent = names.join(', ');
  document.title = `${names.join(', ')} \u2013 posttrain.c`;
  byId('summary').textContent = data.runs.map(run => {
    const last = run.log.reduce((s, l) => Math.max(s, l.step), 0);
    const kind = kindOf(run), name = kind === 'supervised' ? 'sft, full_ft, lora or adapter' : kind;
    return [kind ? `a run of ${name}` : 'files',
            last ? plural(last, 'step') : '', ...run.files.filter(f => f.n).map(f =>
              plural(f.n, 'line') + ` of ${visible(f.name.replace(/.*\//, ''))}`)]
      .filter(Boolean).join(', ');
  }).join('; ') + '.';
  const shapes = all.flatMap(v => KINDS[v.kind].shapes(v)).filter(Boolean);
  const readers = all.map((v, i) => new Reader(v, i));
  const hint = all.length ? null : section('text', 'Text', make('p', {},
    'There is no text: the run wrote none. Give ', make('code', {},
      `${HINTS[data.runs.map(kindOf).find(Boolean)] ?? '--dump_tokens'} ${names[0]}/dump.jsonl`),
    ' to the program, and make the page again.'));
  const sections = [curves(), shapes.length ? section('shapes', 'Distributions',
    make('div', {class: 'panels'}, shapes)) : null, ...readers.map(r => r.section), hint,
    meanings([...new Set(all.map(v => v.kind))]), notes()].filter(Boolean);
  main.append(...sections);
  nav.append(...sections.map(s => {
    const h = s.querySelector('h2');
    return make('a', {href: `#${h.id}`}, h.textContent);
  }), theme());
  fitCharts();
  for (const r of readers) r.choose();
}
start();
