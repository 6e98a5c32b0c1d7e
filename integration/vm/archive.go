package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
)

// An archive writes cpio's newc format, which the kernel unpacks into its
// first root file system: Documentation/driver-api/early-userspace/buffer-format.rst
// of the kernel. The first error stays.
type archive struct {
	w     *bufio.Writer
	at    int64 // bytes written
	inode int
	dirs  map[string]bool
	err   error
}

func newArchive(w io.Writer) *archive {
	return &archive{w: bufio.NewWriterSize(w, 1<<20), dirs: map[string]bool{".": true}}
}

// File types of a mode, as in inode(7).
const (
	typeDir  = 0o040000
	typeChar = 0o020000
	typeFile = 0o100000
	typeLink = 0o120000
)

// trailer is the name of the entry that ends an archive.
const trailer = "TRAILER!!!"

// entry writes a header, the name, and content of the given size. Directories
// above it come first.
func (a *archive) entry(name string, mode, major, minor uint32, content io.Reader, size int64) {
	if name != trailer {
		a.parents(name)
	}
	if size > 1<<32-1 && a.err == nil {
		a.err = fmt.Errorf("%s: cpio's newc format holds files of less than 4 GiB", name)
	}
	if a.err != nil {
		return
	}
	a.inode++
	a.string("070701")
	for _, field := range []int64{
		int64(a.inode), int64(mode), 0, 0, // of root
		1, 0, size, // one link, made in 1970
		0, 0, int64(major), int64(minor), int64(len(name)) + 1, 0,
	} {
		a.string(fmt.Sprintf("%08x", field))
	}
	a.string(name + "\x00")
	a.pad()
	if size > 0 {
		n, err := io.Copy(a.w, content)
		if err == nil && n != size {
			err = fmt.Errorf("%s: %d bytes instead of %d", name, n, size)
		}
		a.at += n
		a.err = err
		a.pad()
	}
}

func (a *archive) string(s string) {
	if a.err == nil {
		_, a.err = a.w.WriteString(s)
		a.at += int64(len(s))
	}
}

// pad fills up to a multiple of four.
func (a *archive) pad() { a.string("\x00\x00\x00"[:-a.at&3]) }

func (a *archive) parents(name string) {
	if dir := path.Dir(name); !a.dirs[dir] {
		a.dir(dir, 0o755)
	}
}

func (a *archive) dir(name string, mode uint32) {
	a.parents(name)
	if !a.dirs[name] {
		a.dirs[name] = true
		a.entry(name, typeDir|mode, 0, 0, nil, 0)
	}
}

func (a *archive) device(name string, mode, major, minor uint32) {
	a.entry(name, typeChar|mode, major, minor, nil, 0)
}

func (a *archive) link(name, target string) {
	a.bytes(name, typeLink|0o777, []byte(target))
}

// bytes writes a file, or what a mode with another type says.
func (a *archive) bytes(name string, mode uint32, data []byte) {
	if mode&^0o7777 == 0 {
		mode |= typeFile
	}
	a.entry(name, mode, 0, 0, bytes.NewReader(data), int64(len(data)))
}

// file copies a file of the host, readable and executable as it is there.
func (a *archive) file(name, from string) {
	if a.err != nil {
		return
	}
	f, err := os.Open(from)
	if err != nil {
		a.err = err
		return
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		a.err = err
		return
	}
	a.entry(name, typeFile|uint32(info.Mode().Perm()), 0, 0, f, info.Size())
}

// tree copies a directory of the host, but for what drop names.
func (a *archive) tree(name, from string, drop func(rel string, d fs.DirEntry) bool) {
	err := filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		switch {
		case rel != "." && drop(rel, d):
			if d.IsDir() {
				return fs.SkipDir
			}
		case d.IsDir():
			a.dir(path.Join(name, rel), 0o755)
		case d.Type().IsRegular():
			a.file(path.Join(name, rel), p)
		}
		return a.err
	})
	if a.err == nil {
		a.err = err
	}
}

func (a *archive) close() error {
	a.entry(trailer, 0, 0, 0, nil, 0)
	if a.err == nil {
		a.err = a.w.Flush()
	}
	return a.err
}
