// The page's data: packs of arrays (explore/pack.py), and the light curves in them (explore/curves.py).

const ARRAYS = {
  Float64: Float64Array, Float32: Float32Array, Uint32: Uint32Array, Uint16: Uint16Array, Uint8: Uint8Array,
};

function bytesOfBase64(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

async function unpack(element) {
  const deflated = new Blob([bytesOfBase64(element.textContent)]).stream();
  const buffer = await new Response(deflated.pipeThrough(new DecompressionStream("deflate"))).arrayBuffer();
  const length = new DataView(buffer).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const first = Math.ceil((4 + length) / 8) * 8;
  const arrays = {};
  for (const [name, [kind, offset, size]] of Object.entries(head.arrays)) {
    arrays[name] = new ARRAYS[kind](buffer, first + offset, size);
  }
  return { content: head.content, arrays };
}

const parsed = new Promise((done) => {
  if (document.readyState !== "loading") done();
  else document.addEventListener("DOMContentLoaded", done);
});

const blocks = new Map();

function block(number) {
  if (!blocks.has(number)) blocks.set(number, readBlock(number));
  return blocks.get(number);
}

async function readBlock(number) {
  const name = `curves-${number}`;
  if (!document.getElementById(name)?.nextElementSibling) await parsed; // it may be half there
  const element = document.getElementById(name);
  const { arrays } = await unpack(element);
  element.remove(); // the text is not needed again
  const first = new Uint32Array(arrays.length.length + 1);
  arrays.length.forEach((size, i) => { first[i + 1] = first[i] + size; });
  return { ...arrays, first };
}

// One light curve: times in days, magnitudes, uncertainties, and the time of a minimum of light.
async function lightCurve(star, blockSize) {
  const data = await block(Math.floor(star / blockSize));
  const place = star % blockSize;
  const [t0, tStep, m0, mStep, eStep, epoch] = data.head.subarray(6 * place, 6 * place + 6);
  const first = data.first[place], size = data.first[place + 1] - first, all = data.err.length;
  const time = new Float64Array(size), mag = new Float64Array(size), err = new Float64Array(size);
  let steps = 0;
  for (let i = 0; i < size; i++) {
    const at = first + i;
    const low = data.time[at] + 256 * data.time[all + at] + 65536 * data.time[2 * all + at];
    steps += low + 16777216 * data.time[3 * all + at];
    time[i] = t0 + steps * tStep;
    mag[i] = m0 + (data.mag[at] + 256 * data.mag[all + at]) * mStep;
    err[i] = data.err[at] * eStep;
  }
  return { time, mag, err, epoch };
}
