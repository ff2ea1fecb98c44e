-- Where a worker serves, so that commands on its machine find it; NULL: it serves nowhere.
ALTER TABLE worker ADD COLUMN url TEXT;
