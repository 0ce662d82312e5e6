/** Taking a bundled example: its files, its question and the answer that is right. */

import { signal } from "@preact/signals";
import { type Example, EXAMPLES, fetchExample } from "../model/examples";
import { add, clear, expected, labelled, question } from "./store";

/** Type of what an example's button carries while it is dragged. */
export const DRAGGED_EXAMPLE = "application/x-vllm-prune-example";

export const exampleError = signal("");

/** Put an example in the place of the files and the question at hand. */
export async function takeExample(example: Example): Promise<void> {
  try {
    const files = await fetchExample(example);
    clear();
    labelled.value = example.labelled;
    question.value = example.question;
    expected.value = { question: example.question, answer: example.answer };
    exampleError.value = "";
    await add(files);
  } catch (error) {
    exampleError.value = `The example could not be loaded: ${(error as Error).message}`;
  }
}

/** The same for the name that a drag has carried. */
export async function takeDragged(name: string): Promise<void> {
  const example = EXAMPLES.find((one) => one.name === name);
  if (example) await takeExample(example);
}
