package world

import (
	"encoding/json"
	"os"
	"path/filepath"
)

// WriteJSON writes a document for other programs; an empty path is nowhere.
func WriteJSON(path string, doc any) error {
	if path == "" {
		return nil
	}
	data, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, append(data, '\n'), 0o644)
}
