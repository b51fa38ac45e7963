// Sequences as people paste them: FASTA, one a line, or CSV in; named records and what is odd about them out.

/** Records {id, sequence} of FASTA, or of one sequence a line. */
export function parseSequences(text) {
  const lines = text.split(/\r?\n/);
  if (!lines.some((line) => line.startsWith(">"))) {
    return lines.map((line) => line.replace(/\s+/g, "")).filter(Boolean).map((sequence, place) => ({ id: String(place + 1), sequence }));
  }
  const records = [];
  for (const line of lines) {
    if (line.startsWith(">")) records.push({ id: line.slice(1).trim().split(/\s+/)[0] || String(records.length + 1), sequence: "" });
    else if (records.length && !line.startsWith(";")) records.at(-1).sequence += line.replace(/\s+/g, "");
    else if (line.trim() && !line.startsWith(";")) throw new Error(`“${line.trim().slice(0, 20)}” stands before the first header line (>name).`);
  }
  return records;
}

/** The rows of CSV or TSV text with quotes, as lists of cells. */
export function parseCsv(text) {
  const comma = text.slice(0, (text + "\n").indexOf("\n")).includes("\t") ? "\t" : ",";
  const rows = [];
  let row = [], cell = "", quoted = false;
  const source = text.replace(/^\uFEFF/, "");
  for (let place = 0; place < source.length; place += 1) {
    const letter = source[place];
    if (quoted) {
      if (letter !== '"') cell += letter;
      else if (source[place + 1] === '"') (cell += '"'), (place += 1);
      else quoted = false;
    } else if (letter === '"' && cell === "") quoted = true;
    else if (letter === comma) row.push(cell), (cell = "");
    else if (letter === "\n") row.push(cell.replace(/\r$/, "")), rows.push(row), (row = []), (cell = "");
    else cell += letter;
  }
  if (cell || row.length) rows.push([...row, cell]);
  return rows.filter((cells) => cells.some((content) => content.trim()));
}

/** FASTA text for each role of a table that has a column for it, or the one column `sequence`. */
export function fastaOfTable(rows, roles) {
  const head = rows[0].map((name) => name.trim().toLowerCase());
  const named = head.findIndex((name) => ["id", "name", "record"].includes(name));
  const columns = roles.map((role) => {
    const found = head.indexOf(role.toLowerCase());
    return found < 0 && roles.length === 1 ? head.indexOf("sequence") : found;
  });
  const missing = roles.filter((_, place) => columns[place] < 0);
  if (missing.length) throw new Error(`The table has no column “${missing.join("”, “")}”; it has ${head.join(", ")}.`);
  return columns.map((column) => rows.slice(1).map((cells, place) => `>${(cells[named] ?? "").trim().replace(/\s+/g, "_") || place + 1}\n${(cells[column] ?? "").trim()}\n`).join(""));
}

/** What is odd about the records for a molecule {type, minimum_length, maximum_length, alphabet}: sentences. */
export function oddities(records, molecule) {
  const found = [];
  const tell = (wrong, what) => {
    if (wrong.length) found.push(`${named(wrong)} ${what(wrong.length === 1)}`);
  };
  const { minimum_length: low, maximum_length: high } = molecule;
  tell(records.filter((record) => !record.sequence), (one) => `${one ? "is" : "are"} empty.`);
  tell(records.filter((record) => record.sequence && record.sequence.length < low), (one) => `${one ? "is" : "are"} shorter than ${low}.`);
  tell(records.filter((record) => record.sequence.length > high), (one) => `${one ? "is" : "are"} longer than ${high.toLocaleString("en")}.`);
  if (molecule.alphabet) {
    const known = new Set([...molecule.alphabet.toUpperCase(), "*", "-", "."]);
    if (known.has("T") || known.has("U")) known.add("T").add("U");
    const strange = records.filter((record) => [...record.sequence.toUpperCase()].some((letter) => !known.has(letter)));
    tell(strange, (one) => `${one ? "has" : "have"} letters that no ${label(molecule.type)} has.`);
  }
  return found;
}

export function label(type) {
  return { dna: "DNA", rna: "RNA", protein: "protein" }[type] ?? type;
}

function named(records) {
  const shown = records.slice(0, 3).map((record) => record.id).join(", ");
  return `${records.length === 1 ? "Record" : "Records"} ${shown}${records.length > 3 ? ` and ${records.length - 3} more` : ""}`;
}
