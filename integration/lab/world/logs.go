package world

import (
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// maxLog bounds what is kept of a log, in bytes.
const maxLog = 16 << 20

// KeepLogs copies every log below a lab's directory, under the same names, and nothing else of it: it has keys.
func KeepLogs(from, to string) error {
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	return filepath.WalkDir(from, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() || filepath.Ext(path) != ".log" {
			return err
		}
		name, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		return copyEnd(path, filepath.Join(to, name))
	})
}

// copyEnd copies a file, of a huge one the end.
func copyEnd(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	if info, err := in.Stat(); err == nil && info.Size() > maxLog {
		if _, err := in.Seek(-maxLog, io.SeekEnd); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, io.LimitReader(in, maxLog))
	if closeErr := out.Close(); err == nil {
		err = closeErr
	}
	return err
}
