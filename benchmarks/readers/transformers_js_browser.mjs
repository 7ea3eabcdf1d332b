// Continue prompts by transformers.js in a real Chromium: `FOLDER PROMPTS COUNT OUT [DTYPE]`.
// Packages: @huggingface/transformers and playwright-core; the browser is $CHROMIUM or /usr/bin/chromium.
import fs from 'fs';
import http from 'http';
import path from 'path';
import { chromium } from 'playwright-core';

const [folder, prompts, count, out, dtype] = process.argv.slice(2);
const roots = {
  '/packages/': path.resolve('node_modules'), '/scripts/': path.resolve('.'), '/models/': path.dirname(path.resolve(folder)),
};
const types = { '.js': 'text/javascript', '.mjs': 'text/javascript', '.wasm': 'application/wasm', '.json': 'application/json' };
const asked = [];

const server = http.createServer((request, response) => {
  const url = decodeURIComponent(new URL(request.url, 'http://localhost').pathname);
  const root = Object.keys(roots).find((prefix) => url.startsWith(prefix));
  const file = root && path.join(roots[root], url.slice(root.length));
  if (root === '/models/') asked.push(url);
  if (url === '/') return response.writeHead(200, { 'content-type': 'text/html' }).end('<!doctype html><title>runner</title>');
  if (!file || !file.startsWith(roots[root]) || !fs.existsSync(file) || !fs.statSync(file).isFile()) return response.writeHead(404).end();
  response.writeHead(200, {
    'content-type': types[path.extname(file)] ?? 'application/octet-stream', 'content-length': fs.statSync(file).size,
  });
  if (request.method === 'HEAD') return response.end();
  fs.createReadStream(file).pipe(response);
});
await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', args: ['--no-sandbox'], timeout: 300000,
});
const page = await browser.newPage();
page.setDefaultTimeout(0);
page.on('pageerror', (error) => console.error(String(error)));
await page.goto(`http://127.0.0.1:${server.address().port}/`, { timeout: 300000 });
const given = { name: path.basename(folder), asked: JSON.parse(fs.readFileSync(prompts)), count: +count, dtype };
const answer = await page.evaluate(async ({ name, asked, count, dtype }) => {
  const { AutoModelForCausalLM, AutoTokenizer, Tensor, env } = await import('/packages/@huggingface/transformers/dist/transformers.min.js');
  const { answers } = await import('/scripts/transformers_js_answers.mjs');
  env.allowRemoteModels = false;
  env.allowLocalModels = true;
  env.localModelPath = '/models/';
  env.backends.onnx.wasm.wasmPaths = '/packages/onnxruntime-web/dist/';
  env.backends.onnx.wasm.numThreads = 1;
  const tokenizer = await AutoTokenizer.from_pretrained(name);
  const model = await AutoModelForCausalLM.from_pretrained(name, { device: 'wasm', ...(dtype ? { dtype } : {}) });
  return answers({ model, tokenizer, Tensor }, asked, count);
}, given);
fs.writeFileSync(out, JSON.stringify(answer));
console.error('files asked for: ' + [...new Set(asked)].join(' '));
await browser.close();
server.close();
