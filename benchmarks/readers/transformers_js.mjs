// Continue prompts by transformers.js: `FOLDER PROMPTS COUNT OUT`.
import fs from 'fs';
import path from 'path';
import { AutoModelForCausalLM, AutoTokenizer, Tensor, env } from '@huggingface/transformers';
import { answers } from './transformers_js_answers.mjs';

const [folder, prompts, count, out] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = path.dirname(folder) + '/';
const tokenizer = await AutoTokenizer.from_pretrained(path.basename(folder));
const model = await AutoModelForCausalLM.from_pretrained(path.basename(folder));
const asked = JSON.parse(fs.readFileSync(prompts));
fs.writeFileSync(out, JSON.stringify(await answers({ model, tokenizer, Tensor }, asked, +count)));
