/** Pictures and a video that come with the page, with a question each. */

import list from "../../public/examples/examples.json";
import { ROOT } from "../api/client";

export interface Example {
  name: string;
  question: string;
  /** What is right. */
  answer: string;
  /** Whether the question counts pictures. */
  labelled: boolean;
  files: string[];
  thumbnail: string;
}

const address = (file: string) => new URL(`playground/examples/${file}`, ROOT).href;

export const EXAMPLES: Example[] = list.map((one) => ({ ...one, thumbnail: address(one.thumbnail) }));

export async function fetchExample(example: Example): Promise<File[]> {
  return Promise.all(
    example.files.map(async (name) => {
      const response = await fetch(address(name));
      if (!response.ok) throw new Error(`HTTP ${response.status} for ${name}`);
      const blob = await response.blob();
      return new File([blob], name, { type: name.endsWith(".mp4") ? "video/mp4" : "image/png" });
    }),
  );
}
