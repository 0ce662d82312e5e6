import { EXAMPLES } from "../model/examples";
import { takeExample } from "../state/examples";

/** What the page is for and how to begin; shown until there is a picture. */
export function Start() {
  return (
    <section class="start" aria-labelledby="start-title">
      <h2 id="start-title">Choose a budget by looking</h2>
      <p>
        A budget says how many of a picture's visual tokens the model reads, and how much of its KV cache is kept. This
        page shows which tokens stay, what the model answers then, and what the request costs.
      </p>
      <ol>
        <li>Drop a screenshot or a video here, or take an example.</li>
        <li>Move a setting's slider: what is dropped turns dark.</li>
        <li>Ask, and compare the answers with the one without a budget.</li>
      </ol>
      <button type="button" class="primary" onClick={() => void takeExample(EXAMPLES[0]!)}>
        Take the first example
      </button>
    </section>
  );
}
