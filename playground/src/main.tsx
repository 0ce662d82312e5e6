import { render } from "preact";
import "uplot/dist/uPlot.min.css";
import "./style.css";
import { connect } from "./state/store";
import { startPreviews } from "./state/requests";
import { App } from "./ui/App";

render(<App />, document.getElementById("app")!);
startPreviews();
void connect();
