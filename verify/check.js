// Compares a port's values with golden vectors, without Python:
//
//     node verify/check.js verify/golden/v2/ddda-decode.safetensors mine.safetensors [--dtype bfloat16]
//
// Prints a line for each level, and the first value that differs. A value agrees if its relative RMS error is at most
// four times the noise of its stage (noise.json), as in compare.py, of which this is the short form: values have to be
// in the reference's order of axes (axes of 1 may be added), of tied experts either is accepted, and nothing is
// explained but a state that is transposed where K = V, so that its shape is right. Exit code: 0 all is there and agrees, 1 some differ, 2 nothing to compare, 3 some is missing.

const fs = require('fs');
const path = require('path');

const EPSILON = { float64: 2 ** -53, float32: 2 ** -24, float16: 2 ** -11, bfloat16: 2 ** -8 };
const LEVELS = ['op', 'layer', 'prefill', 'decode', 'padded', 'mtp', 'rollback', 'packed', 'gradients'];
const READERS = {
  F64: (view, i) => view.getFloat64(8 * i, true),
  F32: (view, i) => view.getFloat32(4 * i, true),
  F16: (view, i) => half(view.getUint16(2 * i, true)),
  BF16: (view, i) => upperHalf(view.getUint16(2 * i, true)),
  I64: (view, i) => Number(view.getBigInt64(8 * i, true)),
  U64: (view, i) => Number(view.getBigUint64(8 * i, true)),
  I32: (view, i) => view.getInt32(4 * i, true),
  U32: (view, i) => view.getUint32(4 * i, true),
  I16: (view, i) => view.getInt16(2 * i, true),
  U16: (view, i) => view.getUint16(2 * i, true),
  I8: (view, i) => view.getInt8(i),
  U8: (view, i) => view.getUint8(i),
};

function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -24 * fraction);
}

function upperHalf(bits) {
  const view = new DataView(new ArrayBuffer(4));
  view.setUint32(0, bits << 16);
  return view.getFloat32(0);
}

function readTrace(file) {
  const data = fs.readFileSync(file);
  const size = Number(data.readBigUInt64LE(0));
  const header = JSON.parse(data.toString('utf8', 8, 8 + size));
  const metadata = header.__metadata__ || {};
  delete header.__metadata__;
  const arrays = new Map();
  for (const [name, { dtype, shape, data_offsets: [begin, end] }] of Object.entries(header)) {
    if (!READERS[dtype]) throw new Error(`${file}: ${name} has dtype ${dtype}`);
    const view = new DataView(data.buffer, data.byteOffset + 8 + size + begin, end - begin);
    const count = shape.reduce((a, b) => a * b, 1);
    arrays.set(name, { shape, values: Float64Array.from({ length: count }, (_, i) => READERS[dtype](view, i)) });
  }
  return { arrays, manifest: JSON.parse(metadata.manifest || '{}') };
}

const isBatch = (fed) => Array.isArray((fed.tokens || [])[0]);
const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

function levelOf(step, key, steps) {
  const fed = steps[step] || {};
  if (key.endsWith('.grad')) return 'gradients';
  if (fed.op) return 'op';
  if (fed.layers) return 'layer';
  if (fed.starts) return 'packed';
  if (isBatch(fed)) return 'padded';
  const before = fed.before || [];
  if (before.length) {
    const names = Object.keys(steps);
    const earlier = names.slice(0, names.indexOf(step) + 1);
    const begin = Math.max(0, earlier.map((name) => (steps[name].before || []).length === 0).lastIndexOf(true));
    if (earlier.slice(begin).some((name) => steps[name].tokens.length === 0)) return 'rollback';
  }
  if (fed.drafts !== undefined || key.startsWith('mtp.')) return 'mtp';
  return before.length ? 'decode' : 'prefill';
}

// The rows of a value that are compared: without padding, without what means nothing in a packed row
function rowsOf(step, key, fed, rows) {
  const all = Array.from({ length: rows }, (_, i) => i);
  const perToken = !/(\.state|\.conv_state)$/.test(key);
  if (fed.starts && perToken) {
    const border = new Set(fed.starts.slice(1).map((start) => (key.startsWith('mtp.') ? start - 1 : start)));
    if (key.startsWith('mtp.') || key.endsWith('linear_attn.g')) return all.filter((i) => !border.has(i));
  }
  if (isBatch(fed) && perToken) {
    const longest = Math.max(...fed.tokens.map((row) => row.length));
    const width = key.startsWith('mtp.') ? longest - 1 : longest;
    const lengths = fed.tokens.map((row) => row.length - (key.startsWith('mtp.') ? 1 : 0));
    return all.filter((i) => i % width < lengths[Math.floor(i / width)]);
  }
  return all;
}

function allowedOf(key, fed, noise, dtype) {
  if (fed.op) return fed.tolerance[dtype] || 40 * EPSILON[dtype];
  const floors = noise.floors[dtype].chained;
  const match = key.match(/^(?:model|mtp)\.layers\.(\d+)\.(.+)$/);
  const stage = match ? (match[2] === 'out' ? 'layer.out' : match[2]) : key;
  const floor = floors[stage] ?? Math.max(...Object.values(floors));
  const before = [fed.before || []].flat(2).length;
  const angle = (EPSILON.float32 * (before + [fed.tokens].flat(2).length)) / 2;
  return 4 * (floor * Math.sqrt(match ? Number(match[1]) + 1 : 1) + angle);
}

// Tokens for which noise may have chosen other experts, or null if a choice is wrong
function ties(ref, mine, probabilities, k) {
  const found = new Set();
  const experts = probabilities ? probabilities.values.length / (ref.values.length / k) : 0;
  for (let t = 0; t * k < ref.values.length; t++) {
    const theirs = [...ref.values.slice(t * k, t * k + k)];
    const ours = [...mine.values.slice(t * k, t * k + k)];
    const lost = theirs.filter((e) => !ours.includes(e));
    const won = ours.filter((e) => !theirs.includes(e));
    if (!lost.length && !won.length) continue;
    if (!probabilities || lost.length !== won.length) return null;
    const p = (e) => probabilities.values[t * experts + e];
    if (Math.max(...lost.map(p)) - Math.min(...won.map(p)) > 1e-6) return null;
    found.add(t);
  }
  return found;
}

function sortedWeights(weights, ids, k) {
  const values = weights.values.slice();
  for (let t = 0; t * k < values.length; t++) {
    const order = Array.from({ length: k }, (_, i) => i).sort((a, b) => ids.values[t * k + a] - ids.values[t * k + b]);
    order.forEach((from, to) => (values[t * k + to] = weights.values[t * k + from]));
  }
  return { shape: weights.shape, values };
}

function relativeError(ref, mine, rows, perRow) {
  let error = 0;
  let size = 0;
  for (const row of rows) {
    for (let i = row * perRow; i < (row + 1) * perRow; i++) {
      error += (mine.values[i] - ref.values[i]) ** 2;
      size += ref.values[i] ** 2;
    }
  }
  if (Number.isNaN(error)) return Infinity;
  return error === 0 ? 0 : Math.sqrt(error / size);
}

function compareOne(name, ref, mine, steps, noise, dtype) {
  const [step, key] = splitName(name);
  const fed = steps[step] || {};
  const r = ref.get(name);
  const m = mine.get(name);
  const squeezed = (shape) => shape.filter((n) => n !== 1);
  if (!same(squeezed(r.shape), squeezed(m.shape))) return `has shape [${m.shape}], expected [${r.shape}]`;
  const k = r.shape[r.shape.length - 1];
  const at = (stage) => name.replace(/topk_(ids|weights)$/, stage);
  let [theirs, ours] = [r, m];
  let skip = new Set();
  if (/topk_(ids|weights)$/.test(key) && ref.has(at('topk_ids')) && mine.has(at('topk_ids'))) {
    const ids = [ref.get(at('topk_ids')), mine.get(at('topk_ids'))];
    skip = ties(ids[0], ids[1], ref.get(at('router_probs')), k);
    if (key.endsWith('ids')) return skip ? '' : 'other experts are chosen';
    if (!skip) return ''; // the wrong choice has been reported
    [theirs, ours] = [sortedWeights(r, ids[0], k), sortedWeights(m, ids[1], k)];
  }
  const axes = isBatch(fed) && !/(\.state|\.conv_state)$/.test(key) ? 2 : 1;
  const count = r.shape.slice(0, axes).reduce((a, b) => a * b, 1);
  const rows = rowsOf(step, key, fed, count).filter((row) => !skip.has(row));
  const error = relativeError(theirs, ours, rows, r.values.length / count);
  const allowed = allowedOf(key, fed, noise, dtype);
  if (error <= allowed) return '';
  const words = `relative error ${error.toPrecision(3)}, allowed ${allowed.toPrecision(3)}`;
  const square = r.shape[r.shape.length - 2] === k;
  if (!square || !/(linear_attn\.state|^state_out)$/.test(key)) return words;
  const turned = relativeError(theirs, transposed(ours, k), rows, r.values.length / count);
  return turned <= allowed ? `${words}: the state is transposed, (V, K); it is (K, V)` : words;
}

// The same with the last two axes, both of n, swapped
function transposed({ shape, values }, n) {
  const swapped = (i) => i - (i % (n * n)) + (i % n) * n + Math.floor((i % (n * n)) / n);
  return { shape, values: values.map((_, i) => values[swapped(i)]) };
}

function splitName(name) {
  const slash = name.lastIndexOf('/');
  return [name.slice(0, Math.max(slash, 0)), name.slice(slash + 1)];
}

function main() {
  const options = process.argv.slice(2);
  const at = options.indexOf('--dtype');
  const given = at < 0 ? null : options.splice(at, 2)[1];
  if (options.length !== 2) throw new Error('usage: node check.js REF MINE [--dtype float32]');
  const [reference, port] = options.map(readTrace);
  const dtype = given || port.manifest.dtype || 'float32';
  if (!EPSILON[dtype]) throw new Error(`dtype is ${dtype}, expected one of ${Object.keys(EPSILON).join(', ')}`);
  const precision = dtype === 'float64' ? 'float32' : dtype; // golden vectors are stored in float32
  const noise = JSON.parse(fs.readFileSync(path.join(__dirname, 'noise.json'), 'utf8'));
  const steps = reference.manifest.steps || {};
  const order = reference.manifest.order || [...reference.arrays.keys()];
  const levels = {};
  let first = null;
  for (const name of order) {
    const [step, key] = splitName(name);
    if (((steps[step] || {}).inputs || []).includes(key)) continue;
    const level = levelOf(step, key, steps);
    const counts = (levels[level] ??= { compared: 0, of: 0, wrong: 0, missing: [] });
    counts.of++;
    if (!port.arrays.has(name)) {
      counts.missing.push(name);
      continue;
    }
    counts.compared++;
    const problem = compareOne(name, reference.arrays, port.arrays, steps, noise, precision);
    if (problem) {
      counts.wrong++;
      first ??= `${name}: ${problem}`;
    }
  }
  for (const level of LEVELS.filter((name) => levels[name])) {
    const { compared, of, wrong, missing } = levels[level];
    const verdict = wrong ? `${wrong} differ` : compared === of ? 'complete' : `incomplete: ${missing[0]} ..`;
    console.log(`${level.padEnd(10)} ${compared} of ${of}  ${verdict}`);
  }
  const found = Object.values(levels);
  if (first) console.log(`first: ${first}`);
  if (first) return 1;
  if (!found.some((level) => level.compared)) return 2;
  return found.every((level) => level.compared === level.of) ? 0 : 3;
}

try {
  process.exitCode = main();
} catch (error) {
  console.error(`check.js: ${error.message}`);
  process.exitCode = 2;
}
